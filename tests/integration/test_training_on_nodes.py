"""A training on two nodes that `ray start` started: one of them leaves, a worker dies, the driver dies."""

import contextlib
import random
import re
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from tests.clusters import TRAINS, Cluster
from tests.integration.outcomes import EPOCHS, Outcome

pytestmark = pytest.mark.timeout(900)

# Long enough for something to happen meanwhile.
LASTING = {"train.epochs": 150, "train.schedule": "constant", "resources.train_workers": [1, 2]}
FOR_TWO = {**LASTING, "resources.train_workers": 2}
LOOKS_FOR_DRAINS = {"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"}


@pytest.fixture(scope="module")
def cluster_with_jobs(cluster):
    """Another head with one CPU, of the same person, to which jobs are submitted."""
    started = Cluster(cluster.home, cpus=1, environment=LOOKS_FOR_DRAINS)
    yield started
    started.close()


@pytest.fixture
def prepare(projects, finished):
    """Return a function that returns a project whose spectrograms are made."""

    def prepare(name, changes):
        project = projects.copy(finished, name)
        project.set_params(changes)
        return project

    return prepare


def start(project, cluster=None, **environment):
    """Start a training on the nodes of a cluster, or on this machine."""
    if cluster:
        token = str(cluster.home / ".ray" / "auth_token")
        environment = {"RAY_ADDRESS": cluster.address, "RAY_AUTH_TOKEN_PATH": token, **LOOKS_FOR_DRAINS, **environment}
    return project.start("python", "-m", "training.stages.train", **environment)


def drain(cluster, raylet):
    """Tell Ray that a node is to go in two minutes, as who lends it does."""
    (node_id,) = re.findall(r"--node_id=(\w+)", " ".join(raylet.cmdline()))
    options = ["--address", cluster.address, "--node-id", node_id, "--deadline-remaining-seconds", "120"]
    options += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
    subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "drain-node", *options],
        env={"HOME": str(cluster.home), "RAY_AUTH_MODE": "token", "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
    )


def kill(cluster, raylet):
    raylet.kill()


def checkpoints(project, pattern):
    return [path.name for path in project.path("checkpoints").glob(f"*/{pattern}")]


def epochs_told(started):
    return [int(epoch) for epoch in re.findall(r"^train: epoch (\d+)/", started.output, re.MULTILINE)]


# --- nodes that leave


def test_a_node_that_is_to_go_is_left_from_a_checkpoint_within_an_epoch(prepare, cluster):
    project = prepare("drained", LASTING)
    with cluster.mortal_node() as raylet:
        started = start(project, cluster)
        started.wait_until(lambda: len(epochs_told(started)) >= 3, timeout=300)
        drain(cluster, raylet)
        (left,) = started.wait_until(lambda: checkpoints(project, "epoch-*-step-*"), timeout=300, interval=0.002)
        started.wait_until(lambda: "train: with 1 workers instead of 2\n" in started.output, timeout=300)
        epoch = int(left.split("-")[1])
        started.wait_until(lambda: epochs_told(started)[-1] >= epoch + 2, timeout=300)
        started.kill()

    assert "train: a node is being drained; going on from the last checkpoint\n" in started.output
    assert epochs_told(started) == list(range(1, epochs_told(started)[-1] + 1))


@pytest.fixture(scope="module")
def quiet(projects, finished):
    """A project after a long training of two workers on this machine, in which nothing happened."""
    project = projects.copy(finished, "quiet")
    project.set_params(FOR_TWO)
    assert "train: best val_mse" in start(project).wait(600)
    return project


def read_curves(project):
    return np.genfromtxt(project.path("reports/train/curves.csv"), delimiter=",", names=True)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("how", "lose", "told"),
    [
        ("address", drain, "a node is being drained"),
        ("address", kill, "a worker was lost, 1 of at most 3 times"),
        ("jobs", drain, "a node is being drained"),
    ],
)
def test_what_comes_out_is_what_a_quiet_training_comes_to(request, prepare, quiet, how, lose, told):
    cluster = request.getfixturevalue("cluster" if how == "address" else "cluster_with_jobs")
    project = prepare(f"{lose.__name__}-{how}", LASTING)
    with cluster.mortal_node() as raylet:
        started = start(project, cluster, RAY_ADDRESS=getattr(cluster, how))
        started.wait_until(lambda: len(epochs_told(started)) >= 10, timeout=300)
        lose(cluster, raylet)
        output = started.wait(600)

    assert f"train: {told}; going on from the last checkpoint\n" in output
    assert "train: with 1 workers instead of 2\n" in output
    curves, expected = read_curves(project), read_curves(quiet)
    np.testing.assert_array_equal(curves["epoch"], np.arange(1, 151))
    for name in ("train_mse", "val_mse"):
        np.testing.assert_allclose(curves[name], expected[name], rtol=1e-2)


# --- processes that die: as many workers go on, to the same bits


class Training:
    """A training of two workers, and what dies in it at moments that follow from a seed."""

    def __init__(self, project, cluster, seed, how="address"):
        self.project = project
        self.n_epochs_in_all = project.params["train"]["epochs"]
        self.cluster = cluster
        self.rng = random.Random(seed)
        self.outputs = []
        self._where = {"RAY_ADDRESS": getattr(cluster, how)}
        self.started = start(project, cluster, **self._where)

    @property
    def n_epochs(self):
        """How many epochs the newest checkpoint holds."""
        return max((int(name.split("-")[1]) for name in checkpoints(self.project, "epoch-*")), default=0)

    def wait(self, first, last):
        """Wait until some epochs have ended, and a moment more; return who trains then."""
        wanted = max(self.n_epochs + 1, self.rng.randint(first, last))
        workers = self.started.wait_until(lambda: self.n_epochs >= wanted and self.cluster.workers(TRAINS), timeout=300)
        time.sleep(self.rng.uniform(0, 0.1))
        assert self.n_epochs < self.n_epochs_in_all, "all was done before the kill"
        return workers

    def kill_a_worker(self, first, last):
        with contextlib.suppress(psutil.NoSuchProcess):
            self.rng.choice(self.wait(first, last)).kill()

    def kill_the_driver(self):
        """Kill the stage, which a job server has started where it was submitted to one, and start it again at once."""
        for each in self.cluster.job_drivers() or [psutil.Process(self.started.process.pid)]:
            each.kill()
        self.outputs.append(self.started.wait(120))
        self.started = start(self.project, self.cluster, **self._where)

    def end(self, expected):
        """Wait for its end, compare what came out, bit for bit, and return all that was printed."""
        self.outputs.append(self.started.wait(300))
        output = "".join(self.outputs)
        assert self.started.process.returncode == 0, output
        Outcome.of(self.project).assert_same(expected)
        assert not list(self.project.path("checkpoints").rglob("*.partial"))
        return output


def test_a_worker_and_the_driver_that_die(prepare, cluster, outcome):
    with cluster.mortal_node():
        training = Training(prepare("killed", {}), cluster, 20240229)
        training.kill_a_worker(1, 4)
        # While workers are about to be started again.
        time.sleep(training.rng.uniform(0, 2))
        n_epochs = training.n_epochs
        training.kill_the_driver()
        output = training.end(outcome)

    assert f"train: 52 spectrograms, 16 for validation, 2 workers, resumed after epoch {n_epochs}\n" in output
    assert epochs_told(training.started) == EPOCHS[n_epochs:]


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("how", "kinds"),
    [("address", "worker worker"), ("address", "driver driver"), ("address", "worker driver"), ("jobs", "driver")],
)
def test_kills_at_any_moment(request, prepare, quiet, how, kinds, seed):
    cluster = request.getfixturevalue("cluster" if how == "address" else "cluster_with_jobs")
    with cluster.mortal_node():
        training = Training(prepare("killed", FOR_TWO), cluster, f"{how} {kinds} {seed}", how)
        for number, kind in enumerate(kinds.split()):
            moment = (1 + 60 * number, 60 + 60 * number)
            if kind == "worker":
                training.kill_a_worker(*moment)
            else:
                training.wait(*moment)
                training.kill_the_driver()
        output = training.end(Outcome.of(quiet))

    n_lost = len(re.findall(r"train: a worker was lost, \d of at most 3 times; going on from", output))
    assert n_lost <= kinds.count("worker")
