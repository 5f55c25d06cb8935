"""The logged model where nothing of the project is: in a child process, in an empty folder."""

import json
import os
import subprocess
import sys

import mlflow
import numpy as np
import pytest

from pipeline.params import PARAMS_FILE, read_params
from tests.training.conftest import NETWORK, SHAPE, randomised
from training import tracking
from training.autoencoder import Autoencoder
from training.params import Params

PREDICT = """
import json, sys
import mlflow.pyfunc
import numpy as np

x = np.load(sys.argv[2])
model = mlflow.pyfunc.load_model(sys.argv[1])
refused = []
for wrong in (x[:, :8], x[..., 0], x.astype(str)):
    try:
        model.predict(wrong)
    except mlflow.exceptions.MlflowException as error:
        refused.append(str(error))
np.savez("found.npz", all=model.predict(x), one=model.predict(x[:1]))
import pipeline, training
print(json.dumps([pipeline.__file__, training.__file__, *refused]))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory, pytestconfig, make_job):
    """Return what a child process loads and predicts, and the network that was logged."""
    folder = tmp_path_factory.mktemp("serving")
    autoencoder = randomised(Autoencoder(SHAPE, **NETWORK))
    autoencoder.save(folder / "model")
    x = np.random.default_rng(8).uniform(size=(70, *SHAPE)).astype(np.float32)
    np.save(folder / "x.npy", x)
    uri = f"sqlite:///{folder}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        params = read_params(Params, pytestconfig.rootpath / PARAMS_FILE)
        with tracking.connect() as client, tracking.training_run(client, "key", params) as run:
            tracking.log_model(client, run.info.run_id, folder / "model", x[:1])
        (model,) = client.get_run(run.info.run_id).outputs.model_outputs
        mlflow.set_tracking_uri(None)
        mlflow.tracking.fluent._active_experiment_id = None
    (folder / "empty").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        [sys.executable, "-I", "-c", PREDICT, f"models:/{model.model_id}", str(folder / "x.npy")],
        cwd=folder / "empty",
        env={**environment, "MLFLOW_TRACKING_URI": uri},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return finished, dict(np.load(folder / "empty" / "found.npz")), autoencoder, x, folder / "mlartifacts"


def test_it_predicts_what_the_network_reconstructs(served):
    _, found, autoencoder, x, _ = served
    expected, _ = autoencoder.reconstruct(x)

    assert found["all"].dtype == np.float32
    assert found["all"].shape == x.shape
    np.testing.assert_allclose(found["all"], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["one"], expected[:1], rtol=1e-4, atol=1e-5)


def test_its_code_is_what_was_logged_with_it(served, pytestconfig):
    finished, *_, artifacts = served
    for path in json.loads(finished.stdout.splitlines()[-1])[:2]:
        assert path.startswith(str(artifacts))
        assert not path.startswith(str(pytestconfig.rootpath))


def test_what_is_no_spectrogram_is_refused_with_its_shape(served):
    finished, *_ = served
    shape, rank, kind = json.loads(finished.stdout.splitlines()[-1])[2:]

    assert "(70, 8, 16, 1)" in shape
    assert "(-1, 16, 16, 1)" in shape
    assert "(70, 16, 16)" in rank
    assert "float32" in kind


def test_nothing_is_pickled(served):
    """What MLflow keeps of the model: text, weights, and Python files."""
    *_, artifacts = served
    (weights,) = artifacts.rglob("*.h5")
    model = weights.parents[2]

    suffixes = {path.suffix for path in model.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert suffixes <= {".h5", ".json", ".lock", ".py", ".pyc", ".txt", ".yaml", ""}
    assert not list(model.rglob("*.pkl"))


def test_requirements_are_the_versions_that_are_here(served):
    *_, artifacts = served
    (path,) = artifacts.rglob("requirements.txt")
    lines = path.read_text().splitlines()

    assert f"mlflow=={mlflow.__version__}" in lines
    assert f"numpy=={np.__version__}" in lines
    names = {line.partition("==")[0] for line in lines}
    assert names & {"tensorflow", "tensorflow-cpu"}
    assert {"keras", "librosa", "soundfile", "soxr", "pyarrow", "pydantic"} <= names
