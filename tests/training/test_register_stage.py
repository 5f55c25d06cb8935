"""The register stage with a real registry: which version is champion, why, and the way back."""

import json
import socket

import pytest

from pipeline.params import PARAMS_FILE, read_params
from tests.training.conftest import DURATION_S, NETWORK, SAMPLE_RATE, SHAPE, make_progress, randomised
from tests.training.processes import python_m, said
from training import tracking
from training.autoencoder import Autoencoder
from training.comparison import held_out_sounds, mean_distance_db
from training.description import DESCRIPTION_FILE, Description
from training.params import Params
from training.paths import CURVES, MODEL, REGISTERED, TEST_METRICS
from training.progress import write_curves
from training.sound import SoundAutoencoder
from training.tracking_registry import Registry

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


@pytest.fixture
def project(tmp_path, make_project, data):
    """Return a project that has been trained and evaluated, but for the model."""
    project = make_project(tmp_path / "trained", {"corpus.dir": str(data.parent / "sounds")})
    write_curves(project / CURVES, make_progress(0.25))
    (project / TEST_METRICS).parent.mkdir(parents=True)
    (project / TEST_METRICS).write_text('{"test_mse": 0.015625, "test_clips": 28}')
    return project


@pytest.fixture
def register(project, client, database, store):
    """Return a function that registers a network as the model of a training, and returns what the stage said."""

    def run(seed, key, data_digest=store.digest):
        autoencoder = randomised(Autoencoder(SHAPE, **NETWORK), seed)
        autoencoder.save(project / MODEL)
        description = Description(key, data_digest, store.format.parameters, None)
        (project / MODEL / DESCRIPTION_FILE).write_text(description.to_json())
        params = read_params(Params, project / PARAMS_FILE)
        with tracking.training_run(client, key, params, resumed=True) as run:
            tracking.log_model(client, run.info.run_id, project / MODEL)
        finished = python_m(project, "training.stages.register", MLFLOW_TRACKING_URI=database)
        assert (finished.returncode, said(finished)) == (0, [])
        assert json.loads((project / REGISTERED).read_text()) == {
            "model": "autoencoder",
            "mlflow_run": run.info.run_id,
            "training_key": key,
            "test_mse": 0.015625,
        }
        return finished.stdout.strip().removeprefix("register: ")

    return run


def test_champions(register, project, client, database, store, data):
    sounds = held_out_sounds(store, data.parent / "sounds")
    description = Description("key", store.digest, store.format.parameters, None)
    distances = {}
    for seed in range(3):
        sound = SoundAutoencoder(randomised(Autoencoder(SHAPE, **NETWORK), seed), description)
        distances[seed] = mean_distance_db(sound, sounds, SAMPLE_RATE, DURATION_S)
    best, middle, worst = sorted(distances, key=distances.get)
    registry = Registry(client)

    def compared(seed, champion_db):
        return (
            f"log-spectral distance {distances[seed]:.3f} dB on {len(sounds)} held-out sounds, and version 1 has "
            f"{champion_db:.3f} dB"
        )

    assert register(middle, "first") == "version 1 of autoencoder, the champion: there is no other"
    assert register(worst, "second", "0" * 64) == (
        f"version 2 of autoencoder, not the champion: {compared(worst, distances[middle])}, judged again on these, "
        "since its data were others; that one stays"
    )
    assert registry.champion().number == "1"
    assert "log_spectral_distance_db" not in registry.champion().tags
    # What a comparison on the same data found of the champion, stands.
    registry.set_tags("1", {"log_spectral_distance_db": "1000.0"})
    assert register(best, "third") == (
        f"version 3 of autoencoder, the new champion: {compared(best, 1000.0)}; that one is now 'previous'"
    )
    assert registry.champion().number == "3"
    assert registry.champion().tags["log_spectral_distance_db"] == repr(distances[best])

    back = python_m(project, "training.rollback", MLFLOW_TRACKING_URI=database)
    assert back.stdout == "rollback: version 1 of autoencoder is the champion again; version 3 is 'previous'\n"
    served = python_m(project, "training.served", "models:/autoencoder@previous", MLFLOW_TRACKING_URI=database)
    run_id = client.get_model_version("autoencoder", "3").run_id
    assert served.stdout.startswith(f"serve: models:/autoencoder@previous is the model of run {run_id}, made at 20")
    # What a person has decided, the same registration does not undo.
    assert register(best, "third").startswith("version 3 of autoencoder, judged when it was registered: the new champ")
    assert registry.champion().number == "1"


def test_no_way_back(project, database, client):
    finished = python_m(project, "training.rollback", MLFLOW_TRACKING_URI=f"sqlite:///{project}/other.db")

    assert finished.returncode == 1
    assert said(finished) == ["error: registered model 'autoencoder' has no version 'previous' to go back to"]


def test_nothing_to_serve(project, database):
    uri = f"sqlite:///{project}/other.db"
    finished = python_m(project, "training.served", "models:/autoencoder/99", MLFLOW_TRACKING_URI=uri)

    assert finished.returncode == 1
    assert said(finished) == [f"error: MLflow at {uri}: Registered Model with name=autoencoder not found"]


def test_a_port_that_is_taken(project, database):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        finished = python_m(
            project, "training.served", "models:/autoencoder/1", "--port", str(port), MLFLOW_TRACKING_URI=database
        )

    assert finished.returncode == 1
    assert said(finished) == [f"error: port {port} of this machine: Address already in use; say another with PORT="]
