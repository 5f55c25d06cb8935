"""Ray Train's workers: as many as there is room for, started again from the last checkpoint when some of them are gone.

Each start has a number of workers that divides the batch. Ray Train's own restarts are off: it knows of no such rule.
"""

import time
from typing import Any

import ray
import ray.exceptions
from ray.train import (
    ControllerError,
    FailureConfig,
    PreemptionError,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)
from ray.train.tensorflow import TensorflowTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import engine
from pipeline.errors import ResourceError, one_line
from pipeline.nodes import staying
from training.loop import STOPPED, Job, train_worker
from training.params import Params

# How long a cluster that has shrunk is waited for, and how often it is looked at.
PATIENCE_S = 600.0
_LOOK_EVERY_S = 5.0
_ANSWERS_WITHIN_S = 60.0
# Starts that Ray had announced room for and then gave none, one after the other; it waits a minute each time.
_MAX_LATE_STARTS = 10
# In characters: where memory was short, Ray describes all processes of the node.
_LONGEST_REASON = 1000
# Those that the first version of Ray Train did not know, which is what its types are of.
_NO_RESTARTS: dict[str, Any] = {"controller_failure_limit": 0, "max_preemption_failures": 0}


def train(job: Job, params: Params, notes: str) -> None:
    """Run workers until the training is over, or its error no longer finite, in the Ray that this is connected to.

    Parameters
    ----------
    job : Job
    params : Params
    notes : str
        Location for Ray's own notes.

    Raises
    ------
    ResourceError
        There is no room for the least number of workers, or `resources.max_failures` was not enough.
    """
    resources = params.resources
    room = Room(params)
    number, failures, late = room.choose(patience_s=0), 0, 0
    while True:
        try:
            if start(job, params, number, notes) != STOPPED:
                return
            late, reason = 0, "a node is being drained"
        except TrainingFailedError as error:
            if isinstance(error, ControllerError):
                late, reason = late + 1, "the cluster had no room for them yet"
            elif is_drain(error):
                late, reason = 0, "a node was drained"
            else:
                late, failures = 0, failures + 1
                reason = f"a worker was lost, {failures} of at most {resources.max_failures} times"
            if failures > resources.max_failures or late > _MAX_LATE_STARTS:
                raise ResourceError(
                    f"training failed more than resources.max_failures={resources.max_failures} times: "
                    + one_line(error)[:_LONGEST_REASON]
                ) from error
        print(f"train: {reason}; going on from the last checkpoint", flush=True)
        before, number = number, room.choose(PATIENCE_S, after_loss=True)
        if number != before:
            print(f"train: with {number} workers instead of {before}", flush=True)


def start(job: Job, params: Params, number: int, notes: str) -> Any:
    """Run a number of workers once, and return what the first of them returns."""
    resources = params.resources
    trainer = TensorflowTrainer(
        train_worker,  # type: ignore[arg-type]  # what types say is what the first version of Ray Train took
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=number, use_gpu=resources.use_gpu, resources_per_worker={"CPU": resources.cpus_per_worker}
        ),
        run_config=RunConfig(
            # Ray's own notes on this start; what a training goes on from is in the checkpoints.
            name=str(time.time_ns()),
            storage_path=notes,
            failure_config=FailureConfig(max_failures=0, **_NO_RESTARTS),
        ),
    )
    return trainer.fit().return_value  # type: ignore[attr-defined]  # as above


def is_drain(error: TrainingFailedError) -> bool:
    """Return whether workers were lost with a node that was drained, which is nobody's failure."""
    if isinstance(error, WorkerGroupError):
        return any(getattr(each, "preempted", False) for each in error.worker_failures.values())
    return isinstance(error, PreemptionError)


class Room:
    """How many workers a cluster has room for.

    Parameters
    ----------
    params : Params
        Whose `worker_counts` may be chosen.
    """

    def __init__(self, params: Params) -> None:
        self._params = params

    def choose(self, patience_s: float, after_loss: bool = False) -> int:
        """Return the greatest number of workers that there is room for, when there is room for any.

        Parameters
        ----------
        patience_s : float
            How long to wait for it.
        after_loss : bool
            Whether nodes may have gone that Ray does not yet miss.

        Raises
        ------
        ResourceError
        """
        counts, end, is_told = self._params.worker_counts, time.monotonic() + patience_s, False
        while True:
            room = self.count(after_loss)
            if fitting := [number for number in counts if number <= room]:
                return fitting[-1]
            if time.monotonic() >= end:
                raise ResourceError(self._describe(room, patience_s))
            if not is_told:
                print(f"train: waiting for nodes: {self._describe(room)}", flush=True)
                is_told = True
            time.sleep(_LOOK_EVERY_S)

    def count(self, after_loss: bool = False) -> int:
        """Return how many workers fit into the nodes that stay."""
        nodes = staying()
        if after_loss and not engine.is_embedded():
            answering = find_answering([each["NodeID"] for each in nodes])
            nodes = [each for each in nodes if each["NodeID"] in answering]
        return sum(self._fitting(each["Resources"]) for each in nodes)

    def _fitting(self, resources: dict[str, float]) -> int:
        """Return how many workers fit into a node."""
        wanted = self._params.resources
        by_cpus = int(resources.get("CPU", 0) // wanted.cpus_per_worker)
        return min(by_cpus, int(resources.get("GPU", 0))) if wanted.use_gpu else by_cpus

    def _describe(self, room: int, patience_s: float = 0.0) -> str:
        resources, least = self._params.resources, self._params.worker_counts[0]
        reached = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus = int(reached.get("CPU", 0))
        gpu = " and a GPU" if resources.use_gpu else ""
        line = f"resources.train_workers={least} of {resources.cpus_per_worker} CPU{gpu} each is more than Ray reaches"
        line += f": {cpus} CPUs" + (f", {int(reached.get('GPU', 0))} GPUs" if gpu else "")
        if least * resources.cpus_per_worker <= cpus:
            line += f" on nodes with room for {room}"
        return line + (f" after {patience_s:.0f} s; run this again when it has more" if patience_s else "")


def find_answering(node_ids: list[str]) -> set[str]:
    """Return which nodes run a small task; Ray misses one that was killed only after half a minute."""
    task: Any = ray.remote(num_cpus=0, max_retries=0)(_answer)
    asked = {
        node_id: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote()
        for node_id in node_ids
    }
    end = time.monotonic() + _ANSWERS_WITHIN_S
    answering = set()
    for node_id, reference in asked.items():
        try:
            ray.get(reference, timeout=max(0.0, end - time.monotonic()))
        except ray.exceptions.RayError:
            continue
        answering.add(node_id)
    return answering


def _answer() -> None:
    pass
