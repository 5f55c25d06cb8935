"""MLflow: the one room that talks to a tracking server.

A run belongs to a training key: a training that was interrupted finds its run again, and what is sent twice counts
once, since every metric keeps the time at which it was first measured.
"""

import glob
import importlib.metadata
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelStatus, Metric, Run, RunStatus
from mlflow.exceptions import MlflowException
from PIL import Image

from pipeline.errors import ResourceError, one_line
from training import provenance
from training.params import Params
from training.payload import example_inputs
from training.progress import CURVES, Epoch, Progress
from training.tracking_origin import KEY_TAG, log_origin, note_experiment
from training.tracking_server import check_answers, limit_waiting, without_password

EXPERIMENT = "generative-music"
WHEN_AWAY = "; run this again when it is back, or set MLFLOW_TRACKING_URI to another"
_CURVES = (*CURVES, "samples_per_s")


def project_root() -> Path:
    """Return the project's folder, also from the copy in which DVC runs a queued experiment."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).absolute()


def tracking_uri() -> str:
    """Return where runs are kept: `MLFLOW_TRACKING_URI`, else `mlflow.db` in the project; files as absolute paths."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project_root() / 'mlflow.db'}"
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        return prefix + str(project_root() / uri.removeprefix(prefix))
    return uri


def check_shared(machines: Sequence[str]) -> None:
    """Refuse to keep runs in a file when several machines take part in them.

    Raises
    ------
    ResourceError
        The locks of SQLite hold between the processes of one machine; on a shared folder they damage the file.
    """
    uri = tracking_uri()
    if uri.startswith("sqlite:") and len(machines) > 1:
        raise ResourceError(
            f"MLFLOW_TRACKING_URI={uri} is a file whose locks hold on one machine only, and {len(machines)} take part "
            f"({', '.join(machines)}): start a server (docs/team.md), and set MLFLOW_TRACKING_URI to its address"
        )


@contextmanager
def connect() -> Iterator[mlflow.MlflowClient]:
    """Set the tracking server and the experiment for a `with` block, and yield a client.

    Raises
    ------
    ServerAwayError
        The server does not answer.
    ResourceError
        It refuses, or the database cannot be used.
    """
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
    limit_waiting()
    check_answers(uri, WHEN_AWAY)
    try:
        _make_database(uri)
        client = mlflow.MlflowClient()
        _set_experiment(client, uri)
    except Exception as error:  # a database is opened here, and what the system or SQLAlchemy says comes as it is
        raise _refusal(uri, error) from error
    try:
        yield client
    except MlflowException as error:
        raise _refusal(uri, error) from error


@contextmanager
def training_run(client: mlflow.MlflowClient, key: str, params: Params, resumed: bool = False) -> Iterator[Run]:
    """Start the run of a training key, or go on with it, for the length of a `with` block.

    The run that `mlflow run` started (`MLFLOW_RUN_ID`) comes first, then an unfinished one of the same key; when the
    training goes on from a checkpoint, also a finished one: a kill may have come before DVC took note of the end.
    """
    run_id = os.environ.get("MLFLOW_RUN_ID") or _unfinished_run(client, key)
    if not run_id and resumed:
        run_id = next((run.info.run_id for run in _runs(client, key)), None)
    with _start(client, run_id, log_system_metrics=True) as run:
        log_origin(client, run.info.run_id, key, params)
        note_experiment(client, run.info.run_id)
        yield run


@contextmanager
def same_run(client: mlflow.MlflowClient, key: str, progress: Progress, params: Params) -> Iterator[Run]:
    """Go on with the newest run of a training key; where this server has none, make one from its progress."""
    found = _runs(client, key)
    run_id = found[0].info.run_id if found else None
    with _start(client, run_id) as run:
        if not found:
            log_origin(client, run.info.run_id, key, params)
            deliver(client, run.info.run_id, progress.history)
        note_experiment(client, run.info.run_id)
        yield run


def deliver(client: mlflow.MlflowClient, run_id: str, history: Iterable[Epoch]) -> None:
    """Send the curves of finished epochs; sending them again changes nothing."""
    metrics = [
        Metric(name, value, epoch.timestamp_ms, epoch.epoch)
        for epoch in history
        for name in _CURVES
        if (value := getattr(epoch, name)) is not None and math.isfinite(value)
    ]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])


def log_model(client: mlflow.MlflowClient, run_id: str, folder: Path) -> None:
    """Log the trained autoencoder as the run's model, with signature and input example, once."""
    if logged_models(client, run_id):
        return
    root = Path(__file__).resolve().parent
    mlflow.pyfunc.log_model(
        name="model",
        python_model=str(root / "serving.py"),
        artifacts={"autoencoder": str(folder)},
        code_paths=[str(root), str(root.parent / "pipeline")],
        input_example=example_inputs(),
        pip_requirements=_serving_requirements(),
    )


def log_picture(client: mlflow.MlflowClient, run_id: str, name: str, file: Path | BytesIO, epoch: int) -> None:
    """Log a picture under a name at an epoch, so that MLflow shows all of that name one after the other."""
    with Image.open(file) as image:
        client.log_image(run_id, image.convert("RGB"), key=name, step=epoch, synchronous=True)


def _serving_requirements() -> list[str]:
    """Return the packages that a serving environment needs, at the versions of this one."""
    needed = "keras librosa mlflow numpy pyarrow pydantic ruamel.yaml scikit-learn scipy soundfile soxr threadpoolctl"
    names = needed.split()
    # The package that brings the module has another name where there is a build without CUDA.
    names.append(importlib.metadata.packages_distributions()["tensorflow"][0].replace("_", "-"))
    return [f"{name}=={importlib.metadata.version(name)}" for name in names]


def _refusal(uri: str, error: Exception) -> ResourceError:
    """Return what a tracking server says as one line."""
    return ResourceError(f"MLflow at {without_password(uri)}: {one_line(error)}")


def _make_database(uri: str) -> None:
    """Make MLflow's database file under another name, and give it its own when it is whole.

    MLflow makes tables in dozens of steps, and can neither repeat nor pass one at which it was killed.
    """
    name, _, options = uri.removeprefix("sqlite:///").partition("?")
    path = Path(name)
    if not uri.startswith("sqlite:///") or path.exists() or not path.parent.is_dir():
        return
    partial = path.with_name(f"{path.name}.{secrets.token_hex(8)}.partial")
    mlflow.MlflowClient(f"sqlite:///{partial}?{options}").search_experiments()
    if not path.exists():
        partial.rename(path)
    for stale in path.parent.glob(f"{glob.escape(path.name)}.*.partial*"):
        stale.unlink(missing_ok=True)


def _set_experiment(client: mlflow.MlflowClient, uri: str) -> None:
    """Choose the experiment; where there is a database and no server, its artifacts get an absolute place."""
    if os.environ.get("MLFLOW_RUN_ID"):
        return
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    if not uri.startswith("http") and client.get_experiment_by_name(name) is None:
        is_file = uri.startswith("sqlite:///")
        artifacts = (Path(uri.removeprefix("sqlite:///")).parent if is_file else project_root()) / "mlartifacts"
        client.create_experiment(name, artifact_location=artifacts.as_uri())
    mlflow.set_experiment(name)


def _start(client: mlflow.MlflowClient, run_id: str | None, **options: Any) -> mlflow.ActiveRun:
    """Start a run, or go on with one, whichever experiment it stands in: `mlflow run` has one of its own."""
    if run_id is not None:
        mlflow.set_experiment(experiment_id=client.get_run(run_id).info.experiment_id)
        return mlflow.start_run(run_id=run_id, **options)
    # Called as DVC calls the experiment, where it is one.
    return mlflow.start_run(run_name=provenance.experiment() or None, **options)


def _runs(client: mlflow.MlflowClient, key: str) -> list[Run]:
    """Return the runs of a training key, the newest first."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.{KEY_TAG} = '{key}'", order_by=["attributes.start_time DESC"])
    return list(found)


def logged_models(client: mlflow.MlflowClient, run_id: str) -> list[str]:
    """Return the ids of the models that a run has logged; one that a kill left half is none."""
    outputs = client.get_run(run_id).outputs
    models = [client.get_logged_model(each.model_id) for each in outputs.model_outputs] if outputs else []
    return [model.model_id for model in models if model.status == LoggedModelStatus.READY]


def _unfinished_run(client: mlflow.MlflowClient, key: str) -> str | None:
    finished = RunStatus.to_string(RunStatus.FINISHED)
    return next((run.info.run_id for run in _runs(client, key) if run.info.status != finished), None)


def log_report(
    client: mlflow.MlflowClient, run_id: str, figures: dict[str, float], files: Iterable[Path], folder: str | None
) -> None:
    """Log a stage's figures, and its files into a folder of the run's artifacts, or at their root."""
    for name, value in figures.items():
        client.log_metric(run_id, name, value)
    for path in files:
        client.log_artifact(run_id, str(path), folder)
