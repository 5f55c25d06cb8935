"""Ray: connect to it, and map a function over units of work. Knows nothing of sound."""

import argparse
import logging
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import ray
import ray.exceptions

from pipeline import cluster, nodes, packages
from pipeline.errors import ResourceError
from pipeline.params import PipelineParams, read_params
from pipeline.submission import submission

Stage = Callable[[argparse.Namespace], None]
Work = TypeVar("Work")
Result = TypeVar("Result")


def stage(main: Stage, wanted: Iterable[str]) -> Stage:
    """Return what runs a stage here or, where `RAY_ADDRESS` names a job server, as a job there.

    Parameters
    ----------
    main : callable
        Of the module that runs.
    wanted : iterable of str
        Packages that the cluster must have as this machine has them.
    """

    def run(arguments: argparse.Namespace) -> None:
        if cluster.kind() != "jobs":
            main(arguments)
            return
        from pipeline import jobs  # noqa: PLC0415 - a second of HTTP clients

        spec = sys.modules["__main__"].__spec__
        assert spec is not None
        folder = read_params(PipelineParams, arguments.params).resources.cluster_folder
        jobs.submit(spec.name, sys.argv[1:], packages.installed(wanted), folder)

    return run


@contextmanager
def connect(verbose: bool = False) -> Iterator[int]:
    """Connect to Ray for the length of a `with` block, and yield how many CPUs it reaches.

    `RAY_ADDRESS` unset: an embedded Ray on this machine that ends with the block. `auto` or `host:port`, on a machine
    that is part of a cluster: that cluster, whose nodes are sent this project's code.

    Parameters
    ----------
    verbose : bool
        Whether what the workers print is shown here. Ray keeps it in its session's log in any case.

    Raises
    ------
    ResourceError
        The address is of another kind, no cluster answers there, or it does not accept this machine.
    """
    options: dict[str, Any] = {"log_to_driver": verbose, "logging_level": logging.WARNING}
    if is_embedded():
        _start(include_dashboard=False, **options)
    else:
        cluster.join(**options)
    try:
        yield int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()


def _start(**options: Any) -> None:
    """Start a Ray of this process's own."""
    try:
        ray.init(**options)
    except Exception as error:  # which class Ray raises itself, where its processes do not come up within 30 s
        ray.shutdown()
        reason = " ".join(str(error).split())
        raise ResourceError(
            f"Ray could not be started on this machine: {reason}; if it is busy with other work, run this again later"
        ) from error


def check_nodes(wanted: Iterable[str], reads: Iterable[Path], writes: Iterable[str]) -> None:
    """Refuse nodes of the cluster that this is connected to, if it is one, where work could only fail later.

    Parameters
    ----------
    wanted : iterable of str
        Packages that nodes must have as this machine has them, by the names of `pipeline.packages`.
    reads : iterable of Path
        Absolute paths of what is only read.
    writes : iterable of str
        Locations of storages, which `pipeline.storage` opens.

    Raises
    ------
    ResourceError
        With the package or path, and the node.
    """
    if not is_embedded():
        nodes.check_versions(wanted)
        nodes.check_reads(reads)
        nodes.check_writes(writes)


def inspect(wanted: Iterable[str], reads: Iterable[Path], writes: Iterable[str]) -> list[str]:
    """Connect, do what `check_nodes` does, and return the names of all machines that would take part.

    These are a cluster's, this one, and the one that submitted this job.
    """
    found = {socket.gethostname()}
    if told := submission():
        found.add(told.host)
    if not is_embedded():
        with connect():
            check_nodes(wanted, reads, writes)
            found.update(nodes.hostnames())
    return sorted(found)


def is_embedded() -> bool:
    """Return whether Ray is this process's own."""
    return cluster.kind() == "embedded"


def check_workers(name: str, wanted: int | Literal["all"], cpus_each: int, cpus: int) -> int:
    """Return how many workers there will be.

    Raises
    ------
    ResourceError
        More are wanted than Ray has CPUs for.
    """
    if wanted == "all":
        return max(1, cpus // cpus_each)
    if wanted * cpus_each > cpus:
        raise ResourceError(f"{name}={wanted} of {cpus_each} CPU each is more than Ray reaches: {cpus} CPUs")
    return wanted


def check_gpus(wanted: int) -> None:
    """Refuse to wait for GPUs that the Ray which this is connected to does not have.

    Raises
    ------
    ResourceError
    """
    found = int(ray.cluster_resources().get("GPU", 0))  # type: ignore[no-untyped-call]
    if wanted > found:
        raise ResourceError(
            f"resources.use_gpu=true wants a GPU for each of {wanted} training processes, and Ray reaches {found} GPUs"
        )


def map_units(
    function: Callable[[Work], Result], units: Iterable[Work], num_workers: int, max_retries: int = 3
) -> Iterator[Result]:
    """Apply a function to every unit on Ray's workers, and yield results as they come, in any order.

    Plain tasks, `num_workers` at a time: a task whose process or node dies runs again elsewhere, and a worker process,
    once it has imported what the first task needed, keeps it for the next. What `function` raises is raised here.

    Parameters
    ----------
    function : callable
        Pure but for idempotent writes. Sent once.
    units : iterable
        Arguments, one per task.
    num_workers : int
        Tasks in flight.
    max_retries : int
        How often a unit may lose its worker.
    """
    call = ray.put(function)
    task: Any = ray.remote(num_cpus=1, max_retries=max_retries)(_apply)
    waiting = iter(units)
    running: list[Any] = []
    try:
        while True:
            running.extend(task.remote(call, unit) for unit in islice(waiting, num_workers - len(running)))
            if not running:
                return
            done, running = ray.wait(running, num_returns=1)
            yield _get(done[0])
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _apply(function: Callable[[Work], Result], unit: Work) -> Result:
    return function(unit)


def _get(reference: Any) -> Any:
    """Return a task's result, or raise what the task raised as itself."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        raise cause from error
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())
        raise ResourceError(f"a unit of work lost its worker process or node again and again: {reason}") from error
