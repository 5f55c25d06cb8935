"""MLflow: where a run comes from, logged and found again."""

import json
import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Dataset, DatasetInput, InputTag, Param, Run, RunTag

from pipeline.errors import ResourceError
from pipeline.params import flatten
from pipeline.paths import REJECTED, TABLE
from pipeline.store import Store
from training import provenance
from training.params import Params

KEY_TAG = "training_key"
EXPERIMENT_TAG = "dvc_experiment"
PATCH = "code.patch"


@dataclass(frozen=True)
class Origin:
    """What a run came from: its id, the git commit, and the versions of packages by name."""

    run_id: str
    commit: str
    versions: dict[str, str]


def log_origin(client: mlflow.MlflowClient, run_id: str, key: str, params: Params) -> None:
    """Log what a run starts from: parameters, key, commit and what differs from it, hashes, versions."""
    known = client.get_run(run_id).data.params
    flat = flatten(params.model_dump(mode="json"))
    wanted = [Param(name, str(value)) for name, value in flat.items() if name not in known]
    tags = {
        KEY_TAG: key,
        **provenance.commit_tags(),
        **{f"dvc.{_tag_name(path)}": md5 for path, md5 in provenance.dependency_hashes().items()},
        **{f"version.{name}": version for name, version in provenance.versions().items()},
    }
    client.log_batch(run_id, params=wanted, tags=[RunTag(name, value) for name, value in tags.items()])
    client.log_text(run_id, provenance.all_packages(), "packages.txt")
    if tags.get("git_dirty") == "true":
        with tempfile.TemporaryDirectory() as folder:
            patch = Path(folder, PATCH)
            patch.write_bytes(os.fsencode(provenance.uncommitted()))
            client.log_artifact(run_id, str(patch))
    log_recorded(client, run_id)


def note_experiment(client: mlflow.MlflowClient, run_id: str) -> None:
    """Add the DVC experiment that this is part of to those of a run: several may come to one training."""
    name = provenance.experiment()
    known = client.get_run(run_id).data.tags.get(EXPERIMENT_TAG, "").split()
    if name and name not in known:
        client.set_tag(run_id, EXPERIMENT_TAG, " ".join([*known, name]))


def log_recorded(client: mlflow.MlflowClient, run_id: str) -> None:
    """Log `params.yaml` and DVC's lock files as they are now, in place of what the run had of them."""
    for path in provenance.RECORDED:
        if path.is_file():
            client.log_artifact(run_id, str(path), None if path.parent == Path() else path.parent.as_posix())


def log_data(client: mlflow.MlflowClient, run_id: str, corpus: str, store: Store) -> None:
    """Log the sounds and the spectrograms as the run's datasets, and the table that names every clip."""
    splits = Counter(store.table["split"].to_pylist())
    spectrograms = {"spectrograms": store.format.n_rows, "shape": store.format.shape, **splits}
    inputs = [_dataset("spectrograms", store.digest[:32], store.folder, spectrograms)]
    if md5 := provenance.dependency_hashes().get(corpus):
        clips = {"clips": len(set(store.table["clip_id"].to_pylist()))}
        inputs.append(_dataset("corpus", md5[:32], Path(corpus).absolute(), clips))
    client.log_inputs(run_id, inputs)
    for path in (store.table_path, REJECTED):
        if path.is_file():
            client.log_artifact(run_id, str(path), "data")


def origin_of(client: mlflow.MlflowClient, name: str, folder: Path) -> Origin:
    """Return what a run came from, and download what it recorded of that into a folder.

    Parameters
    ----------
    client : mlflow.MlflowClient
    name : str
        Id of a run, or name of a DVC experiment, of which the newest run is taken.
    folder : Path

    Raises
    ------
    ResourceError
        There is no such run, or it recorded no commit, parameters, locks or table of clips.
    """
    run = find_run(client, name)
    run_id, tags = run.info.run_id, run.data.tags
    held = {item.path for parent in ("", "data", "pipeline") for item in client.list_artifacts(run_id, parent)}
    wanted = ["params.yaml", "dvc.lock", f"data/{TABLE.name}", f"data/{REJECTED.name}"]
    missing = [path for path in wanted if path not in held]
    if missing or "git_commit" not in tags:
        raise ResourceError(f"MLflow run {run_id} did not record {', '.join(missing) or 'a git commit'}")
    # That of the sample corpus: without it there is no such lock.
    wanted += [path.as_posix() for path in provenance.LOCKS if path.as_posix() in held - set(wanted)]
    if tags.get("git_dirty") == "true":
        wanted.append(PATCH)
    for path in wanted:
        # MLflow puts a file right into the folder that it is given.
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        client.download_artifacts(run_id, path, str((folder / path).parent))
    prefix = "version."
    versions = {name.removeprefix(prefix): value for name, value in tags.items() if name.startswith(prefix)}
    return Origin(run_id, tags["git_commit"], versions)


def find_run(client: mlflow.MlflowClient, name: str) -> Run:
    """Return a run by its id, or the newest of a DVC experiment."""
    if re.fullmatch("[0-9a-f]{32}", name):
        return client.get_run(name)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    tagged = client.search_runs(
        experiments, f"tags.{EXPERIMENT_TAG} LIKE '%{name}%'", order_by=["attributes.start_time DESC"]
    )
    found = next((run for run in tagged if name in run.data.tags[EXPERIMENT_TAG].split()), None)
    if found is None:
        raise ResourceError(f"{name!r} is neither the id of an MLflow run nor the name of a tracked DVC experiment")
    return found


def _dataset(name: str, digest: str, folder: Path, profile: dict[str, Any]) -> DatasetInput:
    """Return a dataset of files in a folder as MLflow keeps it."""
    source = json.dumps({"uri": str(folder)})
    dataset = Dataset(name, digest, source_type="local", source=source, profile=json.dumps(profile))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _tag_name(path: str) -> str:
    """Return a path with nothing in it that MLflow refuses in a tag's name."""
    return "".join(letter if letter.isalnum() or letter in "_-./ " else "_" for letter in path).lstrip("/")[:200]
