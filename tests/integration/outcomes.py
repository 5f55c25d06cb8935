"""What a run came to, in a form in which two runs can be compared, and what MLflow keeps of it."""

import re
import warnings
from dataclasses import dataclass
from functools import cache

import h5py
import numpy as np

from tests.projects import TINY, hashes

with warnings.catch_warnings():
    # MLflow's tables use what SQLAlchemy 2.1 deprecates.
    warnings.simplefilter("ignore")
    import mlflow
    import mlflow.store.tracking.sqlalchemy_store

STAGES = ["pipeline/dvc.yaml:sample_corpus", "preprocess", "train", "evaluate", "generate", "listen", "register"]
EPOCHS = list(range(1, TINY["train.epochs"] + 1))
METRICS = ("train_mse", "val_mse", "learning_rate", "samples_per_s")


@dataclass(frozen=True)
class Outcome:
    """Everything that must be the same, byte for byte and bit for bit, whatever happened on the way."""

    data: dict
    weights: dict
    curves: str

    @classmethod
    def of(cls, project):
        """Return what is in a project now."""
        return cls(
            hashes(project.path("data")),
            read_weights(project.path("models/autoencoder/autoencoder.weights.h5")),
            project.read("reports/train/curves.csv"),
        )

    def assert_same(self, other):
        """Compare with another outcome, and say where they differ."""
        assert self.data == other.data
        assert self.curves == other.curves
        assert self.weights.keys() == other.weights.keys()
        differing = [name for name, values in self.weights.items() if not np.array_equal(values, other.weights[name])]
        assert not differing


def ran(output):
    """Return the stages that a `dvc repro` ran, from what it printed."""
    return re.findall(r"^Running stage '(.+)':$", output, re.MULTILINE)


def read_weights(path):
    """Return the arrays of a file of weights, by path."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


@cache
def tracking(project):
    """Return a client of a project's own MLflow database."""
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{project.path('mlflow.db')}")


def runs_of(project):
    """Return all of a project's MLflow runs, the oldest first."""
    client = tracking(project)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, order_by=["attributes.start_time ASC"]))


def points_of(project, run, metric):
    """Return (step, value) of each point that a run has of a metric, in the order of steps."""
    history = tracking(project).get_metric_history(run.info.run_id, metric)
    return sorted((point.step, point.value) for point in history)
