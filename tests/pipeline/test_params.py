import math

import pytest

from pipeline.errors import ParameterError
from pipeline.params import PARAMS_FILE, PipelineParams, flatten, read_params
from tests.pipeline.conftest import ABSENT


def refusal(path):
    """Return the message with which a file is refused, less its path."""
    with pytest.raises(ParameterError, match="params") as caught:
        read_params(PipelineParams, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message.removeprefix(f"{path}: ")


def test_the_repositorys_own_file(pytestconfig):
    params = read_params(PipelineParams, pytestconfig.rootpath / PARAMS_FILE)

    assert params.preprocess.n_fft // 2 == 256
    assert 1 + round(params.preprocess.duration_s * params.preprocess.sample_rate) // params.preprocess.hop_length == 64


def test_what_was_written_is_read(write_params):
    params = read_params(PipelineParams, write_params({"preprocess.top_db": 60.5, "split.test": r"_[0-4]\.wav$"}))

    assert params.preprocess.top_db == 60.5
    assert params.preprocess.range == (0.0, 1.0)
    assert params.split.test == r"_[0-4]\.wav$"
    assert params.resources.preprocess_workers == "all"


def test_sections_are_frozen(write_params):
    params = read_params(PipelineParams, write_params())

    with pytest.raises(ValueError, match="frozen"):
        params.preprocess.n_fft = 1024


@pytest.mark.parametrize("text", ["1e-5", "1.0e-5", "0.00001", "1E-5"])
def test_every_spelling_of_a_number_is_one(write_params, text):
    path = write_params({"preprocess.amin": "HERE"})
    path.write_text(path.read_text().replace("HERE", text))

    assert read_params(PipelineParams, path).preprocess.amin == 1e-5


def test_a_whole_number_will_do_for_a_share_and_not_the_reverse(write_params):
    assert read_params(PipelineParams, write_params({"preprocess.top_db": 80})).preprocess.top_db == 80.0
    assert refusal(write_params({"preprocess.n_fft": 512.0})) == "preprocess.n_fft=512.0 should be a valid integer"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preprocess.hop_length": ABSENT}, "preprocess.hop_length is missing"),
        ({"split": ABSENT}, "split is missing"),
        ({"preprocess.top_bd": 80.0}, "preprocess.top_bd is unknown (did you mean top_db?)"),
        ({"split.xyzzy": 1}, "split.xyzzy is unknown"),
        ({"preprocess.mono": "yes"}, "preprocess.mono='yes' should be a valid boolean"),
        ({"preprocess.mono": 1}, "preprocess.mono=1 should be a valid boolean"),
        ({"preprocess.top_db": True}, "preprocess.top_db=True should be a valid number"),
        ({"preprocess.top_db": None}, "preprocess.top_db=None should be a valid number"),
        ({"preprocess.top_db": -3.0}, "preprocess.top_db=-3.0 should be greater than 0"),
        ({"preprocess.top_db": math.inf}, "preprocess.top_db=inf should be a finite number"),
        ({"preprocess.duration_s": math.inf}, "preprocess.duration_s=inf should be a finite number"),
        ({"preprocess.amin": math.nan}, "preprocess.amin=nan should be "),
        ({"preprocess.amin": "1e-5x"}, "preprocess.amin='1e-5x' should be a valid number"),
        ({"preprocess.range": [0.0]}, "preprocess.range.1 is missing"),
        ({"preprocess.dtype": "float64"}, "preprocess.dtype='float64' should be 'float32' or 'float16'"),
        ({"preprocess.trim_db": 0.0}, "preprocess.trim_db=0.0 should be greater than 0"),
        ({"preprocess.min_level_db": 3.0}, "preprocess.min_level_db=3.0 should be less than or equal to 0"),
        ({"preprocess.range": [0.0, math.inf]}, "preprocess.range.1=inf should be a finite number"),
        ({"preprocess.max_rejected_share": 5}, "preprocess.max_rejected_share=5 should be less than or equal to 1"),
        ({"sample_corpus.pitches": [60, 128]}, "sample_corpus.pitches.1=128 should be less than or equal to 127"),
        ({"corpus.dir": ""}, "corpus.dir='' should have at least 1 character"),
        ({"split": 3}, "split=3 should be "),
        ({"resources.preprocess_workers": "some"}, "resources.preprocess_workers='some' should be 'all'"),
        ({"resources.preprocess_workers": 0}, "resources.preprocess_workers=0 should be greater than or equal to 1"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(write_params, changes, message):
    assert message in refusal(write_params(changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preprocess.hop_length": 513}, "preprocess: hop_length=513 must be at most n_fft=512"),
        ({"preprocess.n_fft": 511}, "preprocess: n_fft=511 must be even"),
        ({"preprocess.range": [1.0, 0.0]}, "preprocess: range=[1.0, 0.0] must rise"),
        (
            {"preprocess.dtype": "float16", "preprocess.range": [1000.0, 1001.0]},
            "preprocess: range=[1000.0, 1001.0] is too far from zero for the steps of dtype=float16",
        ),
        (
            {"preprocess.dtype": "float16", "preprocess.range": [0.0, 1e5]},
            "preprocess: range=[0.0, 100000.0] is too far from zero for the steps of dtype=float16",
        ),
        (
            {"preprocess.duration_s": 1e-9},
            "preprocess: duration_s=1e-09 is less than a sample at sample_rate=22050",
        ),
        (
            {"split.validation_share": 0.5, "split.test_share": 0.5},
            "split: validation_share=0.5 and test_share=0.5 must leave something to train on",
        ),
    ],
)
def test_contradictions_are_named_with_both_numbers(write_params, changes, message):
    assert message in refusal(write_params(changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split.test": "("}, "split: test='(' must be a regular expression: missing )"),
        ({"split.group": "^[a-z]+"}, "split: group='^[a-z]+' must have a group named (?P<group>...)"),
        ({"corpus.label": "(?P<lable>.)"}, "corpus: label='(?P<lable>.)' must have a group named (?P<label>...)"),
    ],
)
def test_patterns_are_checked_before_they_are_used(write_params, changes, message):
    assert message in refusal(write_params(changes))


def test_all_mistakes_are_told_at_once(write_params):
    message = refusal(write_params({"preprocess.n_fft": "x", "split.seed": 0.5}))

    assert "preprocess.n_fft='x'" in message
    assert "split.seed=0.5" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"corpus: [", "is not YAML: "),
        (b"a: 1\na: 2\n", 'is not YAML: .*duplicate key "a"'),
        (b"\xff\xfe\x00", "is not YAML: .*utf-8"),
        (b"a: !!python/object:os.system\n", "is not YAML: .*os.system"),
        (b"a: 2024-13-45\n", "is not YAML: month must be in 1..12"),
        (b"", "must hold sections of parameters, and holds NoneType"),
        (b"- a\n", "must hold sections of parameters, and holds list"),
    ],
)
def test_what_is_no_parameter_file(tmp_path, content, message):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)

    with pytest.raises(ParameterError, match=message):
        read_params(PipelineParams, path)
    refusal(path)


def test_a_missing_file(tmp_path):
    assert refusal(tmp_path / "params.yaml") == "cannot be read: No such file or directory"


def test_flatten_names_as_dvc_does():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {"a.b": 1, "a.c.d": [2], "e": None}
