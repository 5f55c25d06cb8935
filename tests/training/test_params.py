import pytest
from ruamel.yaml import YAML

from pipeline.errors import ParameterError
from pipeline.params import PARAMS_FILE, read_params
from tests.training.conftest import ABSENT
from training.params import Params


@pytest.fixture
def refusal(tmp_path, make_project):
    """Return a function that returns the message with which changed parameters are refused, less the path."""

    def refuse(changes):
        path = make_project(tmp_path / "project", changes) / PARAMS_FILE
        with pytest.raises(ParameterError, match="params") as caught:
            read_params(Params, path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert len(message.splitlines()) == 1
        return message.removeprefix(f"{path}: ")

    return refuse


def test_the_repositorys_own_file(pytestconfig):
    path = pytestconfig.rootpath / PARAMS_FILE
    params = read_params(Params, path)
    content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))

    assert len(params.autoencoder.conv_filters) >= 3
    assert params.model_dump(mode="json") == content


def test_what_was_written_is_read(tmp_path, make_project):
    changes = {"autoencoder.conv_strides": [2, [4, 1]], "train.target_shape": [128, 32], "train.epochs": 7}
    params = read_params(Params, make_project(tmp_path / "project", changes) / PARAMS_FILE)

    assert params.autoencoder.conv_strides == (2, (4, 1))
    assert params.train.target_shape == (128, 32)
    assert params.train.epochs == 7
    assert params.train.learning_rate == 5e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.epochs": ABSENT}, "train.epochs is missing"),
        ({"train.epoch": 3}, "train.epoch is unknown (did you mean epochs?)"),
        ({"train.epochs": 0}, "train.epochs=0 should be greater than or equal to 1"),
        ({"train.epochs": 5.0}, "train.epochs=5.0 should be a valid integer"),
        ({"train.global_batch_size": "32"}, "train.global_batch_size='32' should be a valid integer"),
        ({"train.learning_rate": 0}, "train.learning_rate=0 should be greater than 0"),
        ({"train.learning_rate": -1e-3}, "train.learning_rate=-0.001 should be greater than 0"),
        ({"train.learning_rate": float("nan")}, "train.learning_rate=nan should be "),
        ({"train.schedule": "linear"}, "train.schedule='linear' should be 'constant' or 'cosine'"),
        ({"train.warmup_epochs": -1}, "train.warmup_epochs=-1 should be greater than or equal to 0"),
        ({"train.patience": 0}, "train.patience=0 should be greater than or equal to 1"),
        ({"train.precision": "float16"}, "train.precision='float16' should be 'float32' or 'bfloat16'"),
        ({"train.shift_frames": -1}, "train.shift_frames=-1 should be greater than or equal to 0"),
        ({"train.target_shape": [256]}, "train.target_shape.1 is missing"),
        ({"train.target_shape": [256, 0]}, "train.target_shape.1=0 should be greater than or equal to 1"),
        ({"train.seed": -1}, "train.seed=-1 should be greater than or equal to 0"),
        ({"autoencoder.latent_space_dim": 0}, "autoencoder.latent_space_dim=0 should be greater than or equal to 1"),
        ({"autoencoder.conv_filters": []}, "autoencoder.conv_filters=[] should have at least 1 item"),
        ({"autoencoder.conv_filters": [4, 0]}, "autoencoder.conv_filters.1=0 should be greater than or equal to 1"),
        ({"autoencoder.conv_filters": 4}, "autoencoder.conv_filters=4 should be a valid tuple"),
        ({"autoencoder.conv_kernels": [3, [3]]}, "autoencoder.conv_kernels.1"),
        ({"autoencoder.conv_strides": [2, 0]}, "autoencoder.conv_strides.1=0 should be greater than or equal to 1"),
        ({"autoencoder.conv_stride": [1]}, "autoencoder.conv_stride is unknown (did you mean conv_strides?)"),
        ({"autoencoder.variational": 1}, "autoencoder.variational=1 should be a valid boolean"),
        ({"autoencoder.beta": 0.0}, "autoencoder.beta=0.0 should be greater than 0"),
        ({"evaluate.examples": 0}, "evaluate.examples=0 should be greater than or equal to 1"),
        ({"resources.use_gpu": 1}, "resources.use_gpu=1 should be a valid boolean"),
        ({"resources.train_workers": [2, 1]}, "[2, 1] must be the least and the most, in this order"),
        ({"resources.train_workers": [0, 1]}, "resources.train_workers.0=0 should be greater than or equal to 1"),
        ({"resources.train_workers": "all"}, "resources.train_workers='all' should be a valid integer"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(refusal, changes, message):
    assert message in refusal(changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"autoencoder.conv_filters": [4, 4, 4]},
            "autoencoder: conv_filters, conv_kernels, conv_strides have 3, 2 and 2 entries, and must have one per "
            "layer",
        ),
        ({"train.warmup_epochs": 4}, "train: warmup_epochs=4.0 must be fewer than epochs=4"),
        (
            {"resources.train_workers": 3},
            "resources.train_workers=3 must divide train.global_batch_size=16, so that every worker has an equal slice",
        ),
        (
            {"resources.train_workers": [5, 7]},
            "resources.train_workers=[5, 7] must hold a number that divides train.global_batch_size=16, so that every",
        ),
    ],
)
def test_contradictions_are_named_with_both_numbers(refusal, changes, message):
    assert message in refusal(changes)


@pytest.mark.parametrize(
    ("workers", "counts"), [(4, [4]), ([1, 4], [1, 2, 4]), ([3, 15], [4, 8]), ([9, 100], [16]), ([2, 2], [2])]
)
def test_only_numbers_of_workers_that_divide_the_batch(tmp_path, make_project, workers, counts):
    path = make_project(tmp_path / "project", {"resources.train_workers": workers}) / PARAMS_FILE

    assert read_params(Params, path).worker_counts == counts


def test_an_unknown_section(tmp_path, make_project):
    path = make_project(tmp_path / "project") / PARAMS_FILE
    path.write_text(path.read_text() + "trian: {epochs: 3}\n")

    with pytest.raises(ParameterError, match=r"trian is unknown \(did you mean train\?\)"):
        read_params(Params, path)


def test_all_mistakes_are_told_at_once(refusal):
    message = refusal({"train.epochs": "x", "autoencoder.latent_space_dim": 0})

    assert "train.epochs='x'" in message
    assert "autoencoder.latent_space_dim=0" in message
