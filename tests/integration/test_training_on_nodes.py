"""A training on two nodes that `ray start` started, of which one leaves: told so before, or killed."""

import re
import subprocess
import sys

import numpy as np
import pytest

from tests.clusters import Cluster, write_token

pytestmark = pytest.mark.timeout(900)

# Long enough for something to happen meanwhile.
LASTING = {"train.epochs": 150, "train.schedule": "constant", "resources.train_workers": [1, 2]}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head with one CPU, and the person who has its token."""
    home = tmp_path_factory.mktemp("home")
    write_token(home)
    started = Cluster(home, cpus=1, has_jobs=False)
    yield started
    started.close()


@pytest.fixture
def start(projects, finished, cluster):
    """Return a function that starts a training in a project whose spectrograms are made."""

    def start(name, **environment):
        project = projects.copy(finished, name)
        project.set_params(LASTING)
        return project.start("python", "-m", "training.stages.train", **environment)

    start.on_nodes = {
        "RAY_ADDRESS": cluster.address,
        "RAY_AUTH_TOKEN_PATH": str(cluster.home / ".ray" / "auth_token"),
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
    }
    return start


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


def checkpoints(started, pattern):
    return [path.name for path in started.project.path("checkpoints").glob(f"*/{pattern}")]


def epochs_told(started):
    return [int(epoch) for epoch in re.findall(r"^train: epoch (\d+)/", started.output, re.MULTILINE)]


def test_a_node_that_is_to_go_is_left_from_a_checkpoint_within_an_epoch(start, cluster):
    with cluster.mortal_node() as raylet:
        started = start("drained", **start.on_nodes)
        started.wait_until(lambda: len(epochs_told(started)) >= 3, timeout=300)
        drain(cluster, raylet)
        (left,) = started.wait_until(lambda: checkpoints(started, "epoch-*-step-*"), timeout=300, interval=0.002)
        started.wait_until(lambda: "train: with 1 workers instead of 2\n" in started.output, timeout=300)
        epoch = int(left.split("-")[1])
        started.wait_until(lambda: epochs_told(started)[-1] >= epoch + 2, timeout=300)
        started.kill()

    assert "train: a node is being drained; going on from the last checkpoint\n" in started.output
    assert epochs_told(started) == list(range(1, epochs_told(started)[-1] + 1))


@pytest.mark.soak
@pytest.mark.parametrize(
    ("lose", "told"), [(drain, "a node is being drained"), (kill, "a worker was lost, 1 of at most 3 times")]
)
def test_what_comes_out_is_what_a_quiet_training_comes_to(start, cluster, lose, told):
    quiet = start(f"quiet-{lose.__name__}")
    assert "train: best val_mse" in quiet.wait(600)
    with cluster.mortal_node() as raylet:
        started = start(lose.__name__, **start.on_nodes)
        started.wait_until(lambda: len(epochs_told(started)) >= 10, timeout=300)
        lose(cluster, raylet)
        output = started.wait(600)

    assert f"train: {told}; going on from the last checkpoint\n" in output
    assert "train: with 1 workers instead of 2\n" in output
    curves = [
        np.genfromtxt(each.project.path("reports/train/curves.csv"), delimiter=",", names=True)
        for each in (started, quiet)
    ]
    np.testing.assert_array_equal(curves[0]["epoch"], np.arange(1, 151))
    for name in ("train_mse", "val_mse"):
        np.testing.assert_allclose(curves[0][name], curves[1][name], rtol=1e-2)
