import json
import re

import pytest

from pipeline import submission
from pipeline.errors import ResourceError
from pipeline.packages import installed
from pipeline.submission import VARIABLE, Submission


@pytest.fixture
def told(tmp_path):
    """What a machine says that sees this one's folder."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "probe").write_text("probe")
    return Submission("laptop", str(tmp_path), "probe", installed(["numpy"]), has_terminal=False)


def test_a_submission_comes_as_it_went(monkeypatch, told):
    monkeypatch.setenv(VARIABLE, told.to_json())

    assert submission.submission() == told


def test_who_submitted_nothing(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)

    assert submission.submission() is None
    assert submission.progress_options() == {"disable": None}


def test_progress_is_shown_where_somebody_looks(monkeypatch, told):
    shown = json.loads(told.to_json()) | {"has_terminal": True}
    monkeypatch.setenv(VARIABLE, json.dumps(shown))

    assert submission.progress_options()["disable"] is False


def test_the_same_folder_and_the_same_versions_are_accepted(told):
    told.check()


def test_another_file_of_that_name(told, tmp_path):
    (tmp_path / "data" / "probe").write_text("another")

    with pytest.raises(ResourceError, match=f"^{tmp_path} is another folder on node .* laptop"):
        told.check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"project": "/nowhere"}, "/nowhere is not there on node "),
        ({"probe": "absent"}, "{project} is another folder on node "),
        ({"probe": "."}, "{project} cannot be read (Is a directory) on node "),
        ({"versions": {"Python": "3.5"}}, "node "),
        ({"versions": {"numpy": "0.1"}}, "node "),
    ],
)
def test_what_is_not_as_on_the_submitting_machine(told, changes, message):
    other = Submission(**json.loads(told.to_json()) | changes)

    with pytest.raises(ResourceError, match=f"^{re.escape(message.format(project=told.project))}.* laptop"):
        other.check()
