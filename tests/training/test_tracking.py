"""MLflow with a real database, in a folder of the tests."""

import dataclasses
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import LoggedModelOutput

from pipeline.errors import ResourceError
from training import tracking
from training.progress import Epoch, Progress
from training.requests import TASKS, Reply
from training.tracking_registry import Registry

pytestmark = pytest.mark.usefixtures("nowhere_else")


def make_history(n_epochs):
    return [
        Epoch(number, 1 / number, 2 / number, 1e-3 / 3 / number, 100.0 * number, 1_700_000_000_000 + number)
        for number in range(1, n_epochs + 1)
    ]


def curve(client, run_id, name):
    """Return (epoch, time, value) of each point that is kept."""
    return sorted((point.step, point.timestamp, point.value) for point in client.get_metric_history(run_id, name))


# --- where runs are kept


def test_the_default_is_a_database_in_the_project(tmp_path):
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_queued_experiment_works_in_a_copy_and_tracks_in_the_project(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "project"))

    assert tracking.tracking_uri() == f"sqlite:///{tmp_path}/project/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs/mine.db")
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path}/project/runs/mine.db"


def test_a_relative_database_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mine.db")

    assert tracking.tracking_uri() == f"sqlite:///{tmp_path}/mine.db"


@pytest.mark.parametrize("uri", ["http://127.0.0.1:5000", "sqlite:////absolute/mlflow.db", "postgresql://host/db"])
def test_other_addresses_stay_as_they_are(monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    assert tracking.tracking_uri() == uri


def test_without_a_server_artifacts_have_an_absolute_place(client, database):
    location = client.get_experiment_by_name(tracking.EXPERIMENT).artifact_location

    if database.startswith("sqlite"):
        assert location == Path(database.removeprefix("sqlite:///")).with_name("mlartifacts").as_uri()
    else:
        assert re.fullmatch("file:///.*/mlartifacts", location)


def test_a_password_is_not_shown(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://user:secret@nowhere/x")

    with pytest.raises(ResourceError, match=r"MLflow at ftp://user:\*\*\*@nowhere/x: "):
        tracking.connect().__enter__()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("ftp://nowhere/x", "MLflow at ftp://nowhere/x: "),
        ("http://127.0.0.1:9", "MLflow at http://127.0.0.1:9: .*Connection refused"),
        ("sqlite:////proc/nowhere/mlflow.db", "MLflow at sqlite:////proc/nowhere/mlflow.db: .*No such file"),
        ("sqlite:///params.yaml", "MLflow at sqlite:////.*/params.yaml: .*file is not a database"),
        ("runs", "MLflow at runs: "),
    ],
)
def test_a_server_that_is_none(tmp_path, monkeypatch, uri, message):
    (tmp_path / "params.yaml").write_text("train: {}\n" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    with pytest.raises(ResourceError, match=message) as caught, tracking.connect():
        pass
    assert len(str(caught.value).splitlines()) == 1


def test_a_kill_while_the_database_is_made(tmp_path, pytestconfig, monkeypatch):
    """Its dozens of steps cannot be repeated, so what is half made must not be taken for a database."""
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    code = "from training import tracking; tracking.connect().__enter__()"
    maker = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not any(path.stat().st_size > 200_000 for path in tmp_path.glob("mlflow.db.*.partial")):
        assert maker.poll() is None
        time.sleep(0.01)
    maker.kill()
    maker.wait(10)

    assert not (tmp_path / "mlflow.db").exists()
    with tracking.connect() as client:
        assert client.get_experiment_by_name(tracking.EXPERIMENT)
    assert [path.name for path in tmp_path.glob("mlflow.db*")] == ["mlflow.db"]


# --- what a run starts with


def test_every_parameter_under_its_dotted_name(client, key, params):
    with tracking.training_run(client, key, params) as run:
        pass
    found = client.get_run(run.info.run_id).data.params

    assert found["train.learning_rate"] == "0.005"
    assert found["train.target_shape"] == "None"
    assert found["autoencoder.conv_strides"] == "[2, [4, 2]]"
    assert found["preprocess.n_fft"] == "32"
    content = params.model_dump(mode="json")
    assert found == {
        f"{section}.{name}": str(value) for section, values in content.items() for name, value in values.items()
    }


def test_outside_of_a_repository(client, key, params, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", "/")
    with tracking.training_run(client, key, params) as run:
        pass

    assert "git_commit" not in client.get_run(run.info.run_id).data.tags


# --- which run it is


def test_a_run_that_failed_is_continued(client, key, params):
    with pytest.raises(ValueError, match="killed"), tracking.training_run(client, key, params) as first:
        raise ValueError("killed")
    assert client.get_run(first.info.run_id).info.status == "FAILED"
    with tracking.training_run(client, key, params) as second:
        assert second.info.run_id == first.info.run_id
    assert client.get_run(first.info.run_id).info.status == "FINISHED"


def test_a_run_whose_driver_was_killed_is_continued(client, key, params):
    """A kill leaves a run as it was: running."""
    left = client.create_run(
        client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id, tags={"training_key": key}
    )

    assert left.info.status == "RUNNING"
    with tracking.training_run(client, key, params) as run:
        assert run.info.run_id == left.info.run_id


def test_a_run_that_is_finished_is_not(client, key, params):
    with tracking.training_run(client, key, params) as first:
        pass
    with tracking.training_run(client, key, params) as second:
        assert second.info.run_id != first.info.run_id


def test_a_run_that_is_finished_is_for_a_training_that_goes_on(client, key, params):
    """It has these epochs already; the training was killed before DVC took note of its end."""
    with tracking.training_run(client, key, params, resumed=False) as first:
        pass
    with tracking.training_run(client, key, params, resumed=True) as second:
        assert second.info.run_id == first.info.run_id
    with tracking.training_run(client, f"{key} of which there is none", params, resumed=True) as third:
        assert third.info.run_id != first.info.run_id


def test_another_key_is_another_run(client, key, params):
    left = client.create_run("0", tags={"training_key": f"{key} of another"})
    with tracking.training_run(client, key, params) as run:
        assert run.info.run_id != left.info.run_id


def test_the_run_that_mlflow_started_comes_first(client, key, params, monkeypatch):
    """`mlflow run` starts a run in an experiment of its own, and tells its id in the environment."""
    unfinished = client.create_run("0", tags={"training_key": key})
    started = client.create_run(client.create_experiment(f"of {key}"))
    monkeypatch.setenv("MLFLOW_RUN_ID", started.info.run_id)
    mlflow.tracking.fluent._active_experiment_id = None
    with tracking.connect() as again, tracking.training_run(again, key, params) as run:
        assert run.info.run_id == started.info.run_id != unfinished.info.run_id
    assert client.get_run(run.info.run_id).data.tags["training_key"] == key


def test_a_run_is_found_in_any_experiment(client, key, params, monkeypatch):
    """What `mlflow run` began in its experiment, a later `dvc repro` by hand goes on with."""
    other = client.create_experiment(f"of {key}")
    left = client.create_run(other, tags={"training_key": key})
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    with tracking.connect() as again, tracking.training_run(again, key, params) as run:
        assert run.info.run_id == left.info.run_id
    with tracking.connect() as again, tracking.same_run(again, key, Progress(), params) as run:
        assert run.info.run_id == left.info.run_id
    with tracking.connect() as again, tracking.training_run(again, f"{key}, later", params) as run:
        assert run.info.experiment_id == client.get_experiment_by_name(tracking.EXPERIMENT).experiment_id


def test_a_run_that_is_not_there(client, key, params, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)

    with (
        pytest.raises(ResourceError, match=f"MLflow at .*{'0' * 32}"),
        tracking.connect() as again,
        tracking.training_run(again, key, params),
    ):
        pass


def test_evaluation_goes_into_the_newest_run_of_its_training(client, key, params):
    for _ in range(2):
        with tracking.training_run(client, key, params) as newest:
            pass
    with tracking.same_run(client, key, Progress(), params) as run:
        assert run.info.run_id == newest.info.run_id
    assert client.get_run(run.info.run_id).info.status == "FINISHED"


def test_where_a_server_has_no_run_one_is_made_from_the_curves(client, key, params):
    history = [dataclasses.replace(epoch, samples_per_s=math.nan) for epoch in make_history(3)]
    with tracking.same_run(client, key, Progress(tuple(history)), params) as run:
        pass
    with tracking.same_run(client, key, Progress(tuple(history)), params) as again:
        assert again.info.run_id == run.info.run_id

    assert client.get_run(run.info.run_id).data.tags["training_key"] == key
    assert "train.epochs" in client.get_run(run.info.run_id).data.params
    assert [value for _, _, value in curve(client, run.info.run_id, "val_mse")] == [2.0, 1.0, 2 / 3]
    assert curve(client, run.info.run_id, "samples_per_s") == []


# --- curves


def test_each_epoch_is_there_once_however_often_it_is_sent(client, key, params):
    history = make_history(300)
    with tracking.training_run(client, key, params) as run:
        for sent in (history[:1], history[:5], history[:5], history, history):
            tracking.deliver(client, run.info.run_id, sent)
    with tracking.training_run(client, f"{key}, later", params):
        tracking.deliver(client, run.info.run_id, history)

    for name in ("train_mse", "val_mse", "learning_rate", "samples_per_s"):
        expected = [(epoch.epoch, epoch.timestamp_ms, getattr(epoch, name)) for epoch in history]
        assert curve(client, run.info.run_id, name) == expected


# --- evaluation


def test_figures_and_files(client, key, params, tmp_path):
    (tmp_path / "x.png").write_bytes(b"a picture")
    with tracking.training_run(client, key, params) as run:
        pass
    for test_mse in (0.25, 0.125):
        with tracking.same_run(client, key, Progress(), params) as run:
            tracking.log_report(client, run.info.run_id, {"test_mse": test_mse}, [tmp_path / "x.png"], "evaluate")

    assert client.get_run(run.info.run_id).data.metrics["test_mse"] == 0.125
    assert [each.path for each in client.list_artifacts(run.info.run_id, "evaluate")] == ["evaluate/x.png"]


# --- the model and its versions


def test_the_model_is_logged_once(client, key, log_model):
    first = log_model(key)
    client.update_run(first.info.run_id, status="FAILED")
    again = log_model(key)

    assert again.info.run_id == first.info.run_id
    assert len(again.outputs.model_outputs) == 1


def test_a_model_of_which_a_kill_left_half_is_logged_again(client, key, params, log_model):
    """MLflow names the model in its run before it has uploaded anything."""
    with tracking.training_run(client, key, params) as run:
        half = mlflow.initialize_logged_model(name="model", source_run_id=run.info.run_id)
        client.log_outputs(run.info.run_id, [LoggedModelOutput(half.model_id, step=0)])
    client.update_run(run.info.run_id, status="RUNNING")
    run = log_model(key)
    version = Registry(client, key).register(run, {})

    assert half.model_id in [model.model_id for model in run.outputs.model_outputs]
    assert client.get_model_version(key, version.number).source != f"models:/{half.model_id}"


def test_the_models_signature_and_example(client, key, log_model):
    run = log_model(key)
    model = mlflow.models.get_model_info(f"models:/{run.outputs.model_outputs[0].model_id}")
    (inputs,), (outputs,) = model.signature.inputs, model.signature.outputs

    taken = {name for task in TASKS.values() for name in task.model_fields}
    assert {field.name for field in inputs.type.properties} == taken
    assert [field.name for field in inputs.type.properties if field.required] == ["task"]
    assert {field.name for field in outputs.type.properties} == set(Reply.model_fields)
    assert model.saved_input_example_info["type"] == "json_object"
