import importlib.metadata
import platform
import re

import pytest

from pipeline import packages
from pipeline.errors import ResourceError

HERE = {"Python": "3.12", "numpy": "2.4.1", "tensorflow|tensorflow-cpu": "2.21.0", "pyloudnorm": ""}


def test_versions_of_what_is_installed_and_of_what_is_not():
    found = packages.installed(["numpy", "absent|numpy", "absent"])

    numpy = importlib.metadata.version("numpy")
    assert found.pop("Python") == re.match(r"\d+\.\d+", platform.python_version())[0]
    assert found == {"numpy": numpy, "absent|numpy": numpy, "absent": ""}


def test_everything_that_is_looked_for_is_a_dependency(pytestconfig):
    lock = (pytestconfig.rootpath / "requirements" / "run.txt").read_text(encoding="utf-8")
    locked = set(re.findall(r"^([a-z0-9-]+)==", lock, re.MULTILINE))

    for name in packages.TRAINING:
        assert locked & set(name.replace(".", "-").split("|"))


def test_the_same_versions_are_accepted_and_what_is_missing_here_may_be_there():
    packages.check_same(HERE, HERE, "node a")
    packages.check_same(HERE, {**HERE, "pyloudnorm": "0.2"}, "node a")


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ({**HERE, "numpy": ""}, "node a has no numpy, where laptop has numpy 2.4.1: install the same on both, as in"),
        ({**HERE, "numpy": "2.4.0"}, "node a has numpy 2.4.0, where laptop has numpy 2.4.1: install"),
        (
            {"Python": "3.11", "numpy": "2.4.1"},
            "node a has Python 3.11, no tensorflow, where laptop has Python 3.12, tensorflow 2.21.0: install",
        ),
    ],
)
def test_what_differs_is_refused(there, message):
    with pytest.raises(ResourceError, match=f"^{re.escape(message)}"):
        packages.check_same(HERE, there, "node a", "laptop")
