"""Trainings beside an MLflow server that is killed, halted and started again: nothing waits, and nothing is lost."""

import time

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import ResourceError
from pipeline.params import PARAMS_FILE, read_params
from tests.training.conftest import make_progress
from tests.training.servers import TrackingServer
from training import tracking
from training.outbox import Outbox
from training.params import Params
from training.paths import CURVES, MODEL, outbox
from training.progress import write_curves
from training.tracking_delivery import Delivery, check_server, stage_run
from training.tracking_registry import Registry

pytestmark = pytest.mark.usefixtures("nowhere_else")
PROGRESS = make_progress(0.5, 0.4, 0.3, 0.35)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory):
    server = TrackingServer(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def server(shared_server, monkeypatch):
    """A server that may or may not run, where stages look for one that answers soon or not at all."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared_server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    return shared_server


@pytest.fixture
def project(tmp_path, make_project, autoencoder, monkeypatch):
    """Parameters of a project, in its folder, with a trained model there and its curves."""
    folder = make_project(tmp_path / "project")
    monkeypatch.chdir(folder)
    autoencoder.save(MODEL)
    write_curves(CURVES, PROGRESS)
    return read_params(Params, PARAMS_FILE)


@pytest.fixture
def start(project, key):
    """Return a function that starts to send a training."""
    return lambda: Delivery(key, project, resumed=False, begin=lambda client, run_id: None, retry_s=0.0)


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def runs_of(key):
    """Return the runs of a training, as a server has them."""
    with tracking.connect() as client:
        return client, tracking._runs(client, key)


def assert_whole(key, n_pictures=0):
    """Assert that a server has one run of a training, each epoch once with its time, and model and pictures."""
    client, (run,) = runs_of(key)
    for name in ("train_mse", "val_mse", "learning_rate", "samples_per_s"):
        found = sorted((p.step, p.timestamp, p.value) for p in client.get_metric_history(run.info.run_id, name))
        assert found == [(epoch.epoch, epoch.timestamp_ms, getattr(epoch, name)) for epoch in PROGRESS.history]
    images = [item.path for item in client.list_artifacts(run.info.run_id, "images")]
    assert sum(path.endswith(".png") for path in images) == n_pictures
    assert len(tracking.logged_models(client, run.info.run_id)) == 1
    assert "train.epochs" in run.data.params
    assert run.info.status == "FINISHED"


def told(capsys):
    """Return what was printed, but for what MLflow's own client tells."""
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("train: ")]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_server_that_is_away_from_start_to_end_and_comes_back_later(server, project, start, key, picture, capsys):
    with start() as delivery:
        delivery.send(PROGRESS.history[:2])
        delivery.send_picture("validation", picture, 2)
        left = delivery.finish(PROGRESS, MODEL)

    assert delivery.run_id is None
    assert left.startswith(f"MLflow at {server.uri}: ")
    assert "Connection refused" in left
    assert left.endswith("; not delivered: epochs 1 to 4, 1 picture, the model, the run's end")
    (line,) = told(capsys)
    assert line.endswith("; the training goes on")
    with pytest.raises(ResourceError, match=r"Connection refused.*; run this again when it is back, or set MLFLOW_"):
        check_server()

    server.start()
    check_server()
    for _ in range(2):  # what is sent again counts once
        with stage_run(key, project):
            pass
    assert_whole(key, n_pictures=1)
    assert not outbox(key, None).entries()


def test_a_server_that_is_away_in_the_middle(server, start, key, picture, capsys):
    with start() as delivery:
        delivery.send(PROGRESS.history[:1])
        client, (run,) = runs_of(key)
        wait_for(lambda: client.get_metric_history(run.info.run_id, "val_mse"))
        server.kill()
        delivery.send(PROGRESS.history[:2])
        delivery.send_picture("validation", picture, 2)
        wait_for(lambda: delivery._problem)
        server.start()
        assert delivery.finish(PROGRESS, MODEL) is None

    assert_whole(key, n_pictures=1)
    assert not outbox(key, None).entries()
    away, back = told(capsys)
    assert away.endswith("; the training goes on")
    assert back == f"train: MLflow is back; MLflow run {run.info.run_id}"


def test_a_server_that_is_gone_at_the_end(server, project, start, key):
    with start() as delivery:
        delivery.send(PROGRESS.history)
        client, (run,) = runs_of(key)
        wait_for(lambda: len(client.get_metric_history(run.info.run_id, "val_mse")) == 4)
        server.kill()
        left = delivery.finish(PROGRESS, MODEL)

    assert left.endswith("; not delivered: the model, the run's end")
    server.start()
    with stage_run(key, project) as (_, later):
        assert later.info.run_id == run.info.run_id
    assert_whole(key)


def test_a_server_that_accepts_and_never_answers_delays_no_epoch(server, start, key):
    """The last resort of a training that is asked to go on is that nobody waits for its server."""
    with start() as delivery:
        server.halt()
        try:
            started = time.monotonic()
            for number in range(1, 5):
                delivery.send(PROGRESS.history[:number])
            sent_s = time.monotonic() - started
            wait_for(lambda: delivery._problem)
            assert sent_s < 2 < time.monotonic() - started  # what one request waits
        finally:
            server.go_on()
        assert delivery.finish(PROGRESS, MODEL) is None
    assert_whole(key)


def test_a_training_that_fails_while_its_server_is_away_says_why_it_failed(server, start, key):
    server.kill()
    with pytest.raises(ValueError, match="the training"), start():
        raise ValueError("the training")
    server.start()
    assert runs_of(key)[1] == []

    with pytest.raises(ValueError, match="the training"), start():
        raise ValueError("the training")
    assert [run.info.status for run in runs_of(key)[1]] == ["FAILED"]


def test_a_server_that_refuses_ends_the_training_before_it_starts(server, start, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(ResourceError, match=f"MLflow at .*{'0' * 32}"):
        start().__enter__()


def test_what_is_wrong_with_a_model_does_not_end_a_training(server, start, key, tmp_path):
    with start() as delivery:
        left = delivery.finish(PROGRESS, tmp_path / "nowhere")

    assert left.endswith("; not delivered: the model, the run's end")


def test_another_server_gets_model_and_curves_from_the_project(server, project, key, tmp_path, monkeypatch):
    """As where a project moves to another server when all is delivered and removed."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    with stage_run(key, project) as (client, run):
        tracking.log_model(client, run.info.run_id, MODEL)
        assert Registry(client, key).register(run, {}).number == "1"
        values = {point.value for point in client.get_metric_history(run.info.run_id, "val_mse")}
    assert values == {0.5, 0.4, 0.3, 0.35}


def test_an_outbox(tmp_path, project, key):
    kept = Outbox(outbox(key, None))
    assert kept.progress() is None
    kept.clear()
    kept.keep(PROGRESS)
    for epoch, content in ((12, b"b"), (2, b"a"), (100000, b"c")):
        kept.keep_picture("val-1", epoch, content)

    assert kept.progress() == PROGRESS
    assert kept.n_pictures() == 3
    taken = kept.pictures()
    assert next(taken) == ("val-1", 2, b"a")
    taken.close()  # as where a server does not take it
    assert kept.n_pictures() == 3
    assert sorted(kept.pictures()) == [("val-1", 2, b"a"), ("val-1", 12, b"b"), ("val-1", 100000, b"c")]
    assert kept.n_pictures() == 0
    kept.clear()
    assert not (project and outbox(key, None).entries())
