"""How many workers a training has, and what counts as a failure; `tests/integration` kills and drains real ones."""

import time

import pytest
import ray
from ray.exceptions import RayActorError
from ray.train import ControllerError, PreemptionError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo

from pipeline.errors import ResourceError
from pipeline.params import PARAMS_FILE, read_params
from training.params import Params
from training.workers import Room, is_drain


@pytest.fixture(scope="module")
def three_cpus():
    """A Ray of three CPUs on this machine."""
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def room(tmp_path, make_project, three_cpus):
    """Return a function that returns the room for trainings with some parameters changed; a batch has 16 rows."""

    def make(workers, **resources):
        changes = {"resources.train_workers": workers} | {f"resources.{name}": each for name, each in resources.items()}
        return Room(read_params(Params, make_project(tmp_path / "project", changes) / PARAMS_FILE))

    return make


@pytest.mark.parametrize(
    ("workers", "cpus", "found"), [(2, 1, 2), ([1, 16], 1, 2), ([1, 16], 2, 1), ([1, 16], 3, 1), ([2, 3], 1, 2)]
)
def test_the_most_that_divide_the_batch_and_fit(room, workers, cpus, found):
    assert room(workers, cpus_per_worker=cpus).choose(patience_s=0) == found


@pytest.mark.parametrize(
    ("workers", "resources", "message"),
    [
        (4, {}, "resources.train_workers=4 of 1 CPU each is more than Ray reaches: 3 CPUs$"),
        ([3, 9], {}, "resources.train_workers=4 of 1 CPU each is more than Ray reaches: 3 CPUs$"),
        ([1, 2], {"cpus_per_worker": 4}, "resources.train_workers=1 of 4 CPU each is more than Ray reaches: 3 CPUs$"),
        (
            1,
            {"use_gpu": True},
            "=1 of 1 CPU and a GPU each is more than Ray reaches: 3 CPUs, 0 GPUs on nodes with room for 0$",
        ),
    ],
)
def test_no_room(room, workers, resources, message):
    with pytest.raises(ResourceError, match=message):
        room(workers, **resources).choose(patience_s=0)


def test_a_cluster_that_has_shrunk_is_waited_for(room, capsys):
    started = time.monotonic()
    with pytest.raises(ResourceError, match=r": 3 CPUs after 1 s; run this again when it has more$"):
        room(4).choose(patience_s=1, after_loss=True)

    assert time.monotonic() - started > 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("train: waiting for nodes: resources.train_workers=4 of 1 CPU each is more than ")


def test_only_a_drained_node_is_no_failure():
    gone = RayActorError(preempted=True)
    info = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"a": [1]})

    assert is_drain(PreemptionError(info))
    assert is_drain(WorkerGroupError("lost", {0: ValueError("its neighbour is gone"), 1: gone}))
    assert not is_drain(WorkerGroupError("lost", {0: RayActorError()}))
    assert not is_drain(ControllerError(ValueError("no room")))
