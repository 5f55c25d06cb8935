"""MLflow: the runs of a search, a child for each trial under one parent."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunStatus
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME

from pipeline.params import flatten
from training.params import Params
from training.progress import Epoch
from training.tracking import deliver
from training.tracking_origin import log_origin

_STOPPED_TAG = "stopped_early"


class SearchRun:
    """The parent run of a search, and the children of its trials.

    Parameters
    ----------
    client : mlflow.MlflowClient
    run_id, experiment_id : str
        Of the parent.
    """

    def __init__(self, client: mlflow.MlflowClient, run_id: str, experiment_id: str) -> None:
        self._client = client
        self._experiment_id = experiment_id
        self.run_id = run_id

    def start_trial(self, number: int, params: Params) -> str:
        """Make a trial's run, with all of its parameters, and return its id."""
        tags = {MLFLOW_PARENT_RUN_ID: self.run_id, MLFLOW_RUN_NAME: f"trial {number}"}
        run_id = str(self._client.create_run(self._experiment_id, tags=tags).info.run_id)
        flat = flatten(params.model_dump(mode="json"))
        self._client.log_batch(run_id, params=[Param(name, str(value)) for name, value in flat.items()])
        return run_id

    def deliver(self, run_id: str, epoch: Epoch) -> None:
        """Send an epoch of a trial."""
        deliver(self._client, run_id, [epoch])

    def end_trial(self, run_id: str, failed: bool, stopped_early: bool) -> None:
        """End a trial's run."""
        self._client.set_tag(run_id, _STOPPED_TAG, str(stopped_early).lower())
        self._client.set_terminated(run_id, RunStatus.to_string(RunStatus.FAILED if failed else RunStatus.FINISHED))

    def log_best(self, values: dict[str, Any], epoch: Epoch) -> None:
        """Note the winner in the parent."""
        for name, value in values.items():
            self._client.set_tag(self.run_id, f"best.{name}", str(value))
        metric = Metric("val_mse", epoch.val_mse, epoch.timestamp_ms, epoch.epoch)
        self._client.log_batch(self.run_id, metrics=[metric])


@contextmanager
def search_run(client: mlflow.MlflowClient, params: Params, space: list[str]) -> Iterator[SearchRun]:
    """Start the parent run of a search for the length of a `with` block."""
    with mlflow.start_run(run_name="search") as run:
        log_origin(client, run.info.run_id, "search", params)
        client.set_tag(run.info.run_id, "search.space", "; ".join(space))
        yield SearchRun(client, run.info.run_id, run.info.experiment_id)
