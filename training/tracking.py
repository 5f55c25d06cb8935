"""MLflow: the one room that talks to a tracking server.

A run belongs to a training key: a training that was interrupted finds its run again, and what is sent twice counts
once, since every metric keeps the time at which it was first measured.
"""

import glob
import importlib.metadata
import math
import os
import secrets
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModelStatus, Metric, Param, Run, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import infer_signature
from ruamel.yaml import YAML

from pipeline.errors import ResourceError
from pipeline.params import flatten
from training.params import Params
from training.progress import CURVES, Epoch, Progress

EXPERIMENT = "generative-music"
KEY_TAG = "training_key"
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


@contextmanager
def connect() -> Iterator[mlflow.MlflowClient]:
    """Set the tracking server and the experiment for a `with` block, and yield a client.

    Raises
    ------
    ResourceError
        The server cannot be reached, or refuses.
    """
    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
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
        _log_start(client, run.info.run_id, key, params)
        yield run


@contextmanager
def same_run(client: mlflow.MlflowClient, key: str, progress: Progress, params: Params) -> Iterator[Run]:
    """Go on with the newest run of a training key; where this server has none, make one from its progress."""
    found = _runs(client, key)
    run_id = found[0].info.run_id if found else None
    with _start(client, run_id) as run:
        if not found:
            _log_start(client, run.info.run_id, key, params)
            deliver(client, run.info.run_id, progress.history)
        yield run


def deliver(client: mlflow.MlflowClient, run_id: str, history: Iterable[Epoch]) -> None:
    """Send the curves of finished epochs; sending them again changes nothing."""
    metrics = [
        Metric(name, getattr(epoch, name), epoch.timestamp_ms, epoch.epoch)
        for epoch in history
        for name in _CURVES
        if math.isfinite(getattr(epoch, name))
    ]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])


def log_model(client: mlflow.MlflowClient, run_id: str, folder: Path, example: Any) -> None:
    """Log the trained autoencoder as the run's model, with signature and input example, once."""
    if _logged_models(client, run_id):
        return
    root = Path(__file__).resolve().parent
    mlflow.pyfunc.log_model(
        name="model",
        python_model=str(root / "serving.py"),
        artifacts={"autoencoder": str(folder)},
        code_paths=[str(root), str(root.parent / "pipeline")],
        signature=infer_signature(example, example),
        input_example=example,
        pip_requirements=_serving_requirements(),
    )


def log_evaluation(client: mlflow.MlflowClient, run_id: str, figures: dict[str, float], files: Iterable[Path]) -> None:
    """Log the test figures, and the pictures and sounds of the evaluation."""
    for name, value in figures.items():
        client.log_metric(run_id, name, value)
    for path in files:
        client.log_artifact(run_id, str(path), "evaluate")


def register(client: mlflow.MlflowClient, name: str, run: Run, tags: dict[str, str]) -> tuple[str, bool]:
    """Make a version of the registered model from a run's model, once, and return it and whether it is champion.

    The first version becomes `champion`.
    """
    models = _logged_models(client, run.info.run_id)
    if not models:
        raise ResourceError(f"MLflow run {run.info.run_id} holds no model; run the train stage again")
    source = f"models:/{models[0]}"
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    versions = client.search_model_versions(f"name = '{name}'")
    version = next((each for each in versions if each.source == source or each.run_id == run.info.run_id), None)
    if version is None:
        version = mlflow.register_model(source, name)
    for key, value in tags.items():
        client.set_model_version_tag(name, version.version, key, value)
    aliases = client.get_registered_model(name).aliases
    if "champion" not in aliases:
        client.set_registered_model_alias(name, "champion", version.version)
        return str(version.version), True
    return str(version.version), str(aliases["champion"]) == str(version.version)


def _serving_requirements() -> list[str]:
    """Return the packages that a serving environment needs, at the versions of this one."""
    names = "keras librosa mlflow numpy pyarrow pydantic ruamel.yaml scipy soundfile soxr".split()
    # The package that brings the module has another name where there is a build without CUDA.
    names.append(importlib.metadata.packages_distributions()["tensorflow"][0].replace("_", "-"))
    return [f"{name}=={importlib.metadata.version(name)}" for name in names]


def _refusal(uri: str, error: Exception) -> ResourceError:
    """Return what a tracking server says as one line."""
    return ResourceError(f"MLflow at {uri}: {' '.join(str(error).split())}")


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
    """Choose the experiment; in the project's own database its artifacts get an absolute place."""
    if os.environ.get("MLFLOW_RUN_ID"):
        return
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    if uri.startswith("sqlite:///") and client.get_experiment_by_name(name) is None:
        artifacts = Path(uri.removeprefix("sqlite:///")).parent / "mlartifacts"
        client.create_experiment(name, artifact_location=artifacts.as_uri())
    mlflow.set_experiment(name)


def _start(client: mlflow.MlflowClient, run_id: str | None, **options: Any) -> mlflow.ActiveRun:
    """Start a run, or go on with one, whichever experiment it stands in: `mlflow run` has one of its own."""
    if run_id is not None:
        mlflow.set_experiment(experiment_id=client.get_run(run_id).info.experiment_id)
    return mlflow.start_run(run_id=run_id, **options)


def _runs(client: mlflow.MlflowClient, key: str) -> list[Run]:
    """Return the runs of a training key, the newest first."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.{KEY_TAG} = '{key}'", order_by=["attributes.start_time DESC"])
    return list(found)


def _logged_models(client: mlflow.MlflowClient, run_id: str) -> list[str]:
    """Return the ids of the models that a run has logged; one that a kill left half is none."""
    outputs = client.get_run(run_id).outputs
    models = [client.get_logged_model(each.model_id) for each in outputs.model_outputs] if outputs else []
    return [model.model_id for model in models if model.status == LoggedModelStatus.READY]


def _unfinished_run(client: mlflow.MlflowClient, key: str) -> str | None:
    finished = RunStatus.to_string(RunStatus.FINISHED)
    return next((run.info.run_id for run in _runs(client, key) if run.info.status != finished), None)


def _log_start(client: mlflow.MlflowClient, run_id: str, key: str, params: Params) -> None:
    """Log what a run starts from: parameters, key, commit, hashes of what it depends on, and `params.yaml`."""
    known = client.get_run(run_id).data.params
    flat = flatten(params.model_dump(mode="json"))
    wanted = [Param(name, str(value)) for name, value in flat.items() if name not in known]
    tags = {KEY_TAG: key, **_dependency_hashes(), **_commit()}
    if experiment := os.environ.get("DVC_EXP_NAME"):
        tags["dvc_experiment"] = experiment
    client.log_batch(run_id, params=wanted, tags=[RunTag(name, value) for name, value in tags.items()])
    for name in ("params.yaml", "dvc.lock"):
        if Path(name).is_file():
            client.log_artifact(run_id, name)


def _dependency_hashes() -> dict[str, str]:
    """Return DVC's hashes of what the stages before this one read and made, as tags."""
    lock = Path("dvc.lock")
    if not lock.is_file():
        return {}
    stages = YAML(typ="safe", pure=True).load(lock.read_text(encoding="utf-8")).get("stages", {})
    preprocess = stages.get("preprocess", {})
    entries = [*preprocess.get("deps", []), *preprocess.get("outs", [])]
    return {f"dvc.{_tag_name(entry['path'])}": entry["md5"] for entry in entries if "md5" in entry}


def _tag_name(path: str) -> str:
    """Return a path with nothing in it that MLflow refuses in a tag's name."""
    return "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in path).lstrip("/")[:200]


def _commit() -> dict[str, str]:
    """Return the git commit, and whether anything differs from it, as tags."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"git_commit": git("rev-parse", "HEAD"), "git_dirty": str(bool(git("status", "--porcelain"))).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}
