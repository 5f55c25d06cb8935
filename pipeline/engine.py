"""Ray: connect to it, and map a function over units of work. Knows nothing of sound."""

import argparse
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import ray
import ray.exceptions

from pipeline import cluster, nodes, packages, versions
from pipeline.errors import ResourceError, one_line
from pipeline.narrowing import DEATHS, MAX_DEADLY, DiedError, Divisible, narrow
from pipeline.params import PipelineParams, read_params
from pipeline.submission import submission

Stage = Callable[[argparse.Namespace], None]
Work = TypeVar("Work")
Result = TypeVar("Result")

_WORKER_DIED = (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError)
# What was made there, and not yet fetched, is lost too.
_NODE_DIED = (
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.ObjectLostError,
)
# Of which a unit may lose so many until it is taken for the reason.
_MAX_NODES = 10
# In seconds, before more work starts after memory was short: who has it may be done soon. It doubles up to six times.
_MEMORY_PAUSE_S = 0.5


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
        # Not without an address: that would join a cluster that was last started here, or wait for one that is gone.
        ray.init(address="local", **options)
    except Exception as error:  # which class Ray raises itself, where its processes do not come up within 30 s
        ray.shutdown()
        reason = one_line(error)
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


def warn_of_processors() -> None:
    """Say which nodes of a cluster, if this is connected to one, have processors on which last bits may differ."""
    if not is_embedded():
        nodes.warn_of_processors(versions.processor())


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


def map_units(
    function: Callable[[Work], Result], units: Iterable[Work], num_workers: int, deaths: int = DEATHS
) -> Iterator[Result]:
    """Apply a function to every unit on Ray's workers, and yield results as they come, in any order.

    Plain tasks, `num_workers` at a time: a task whose process or node dies runs again elsewhere, and a worker process,
    once it has imported what the first task needed, keeps it for the next. What `function` raises is raised here.

    Units of which `deaths` workers have died are put off until all others are done, and then narrowed down alone, so
    that they die of nothing that is beside them; see `pipeline.narrowing`. That a node died is no unit's fault.

    Parameters
    ----------
    function : callable
        Pure but for idempotent writes. Sent once.
    units : iterable
        Arguments, one per task. Those that are `Divisible` can be narrowed down.
    num_workers : int
        Tasks in flight.
    deaths : int
        How many workers a unit may lose.

    Raises
    ------
    ResourceError
        A unit that cannot be narrowed down is deadly to workers; or too many units are.
    """
    tasks = _Tasks(function, num_workers)
    waiting = (_Attempts(unit, deaths) for unit in units)
    deadly: list[Any] = []
    try:
        while tasks.fill(waiting):
            attempts, reference = tasks.wait()
            try:
                result = tasks.get(reference)
            except ray.exceptions.RayError as error:
                if tasks.makes_room(error) or attempts.may_go_on(error):
                    tasks.again.append(attempts)
                else:
                    deadly.append(_check_deadly(attempts, error, len(deadly)))
            else:
                yield result
        for unit in deadly:
            yield narrow(tasks.run, unit)
    finally:
        tasks.cancel()


@dataclass
class _Attempts:
    """What a unit of work has lost, of what it may lose."""

    unit: Any
    deaths: int
    n_died: int = 0
    n_nodes: int = 0

    def may_go_on(self, error: ray.exceptions.RayError) -> bool:
        """Count what ended a task, and return whether another attempt is left.

        Raises
        ------
        ResourceError
            No attempt would help.
        """
        if isinstance(error, _WORKER_DIED):
            self.n_died += 1
            return self.n_died < self.deaths
        self.n_nodes += 1
        if not isinstance(error, _NODE_DIED) or self.n_nodes > _MAX_NODES:
            raise ResourceError(f"a unit of work cannot be done: {_one_line(error)}") from error
        return True


class _Tasks:
    """Tasks that apply one function, each once: Ray's own count of retries does not tell workers from nodes."""

    def __init__(self, function: Callable[[Any], Any], at_a_time: int) -> None:
        self._call = ray.put(function)
        self._task: Any = ray.remote(num_cpus=1, max_retries=0)(_apply)
        self._at_a_time = at_a_time
        self._n_short, self._is_told = 0, False
        self.running: dict[Any, _Attempts] = {}
        self.again: list[_Attempts] = []

    def fill(self, waiting: Iterator[_Attempts]) -> bool:
        """Start tasks, as many as there may be, those that are to be tried again first; return whether any run."""
        while len(self.running) < self._at_a_time:
            attempts = self.again.pop() if self.again else next(waiting, None)
            if attempts is None:
                break
            self.start(attempts)
        return bool(self.running)

    def makes_room(self, error: ray.exceptions.RayError) -> bool:
        """Return whether a task was ended for want of memory beside others, of which there are no more from then on."""
        if not isinstance(error, ray.exceptions.OutOfMemoryError) or not self.running:
            return False
        self._at_a_time = len(self.running)
        if not self._is_told:
            print(f"memory is short, and less is done at a time from now on: {_one_line(error)}", flush=True)
            self._is_told = True
        return True

    def start(self, attempts: _Attempts) -> None:
        """Let a worker try a unit, after a pause if memory was short."""
        if self._n_short:
            time.sleep(_MEMORY_PAUSE_S * 2 ** min(self._n_short - 1, 6))
        self.running[self._task.remote(self._call, attempts.unit)] = attempts

    def wait(self) -> tuple[_Attempts, Any]:
        """Return the next task that has ended: what it was, and what it came to."""
        (done,), _ = ray.wait([*self.running], num_returns=1)
        return self.running.pop(done), done

    def get(self, reference: Any) -> Any:
        """Return what a task came to, and count how many have ended one after the other for want of memory."""
        try:
            result = _get(reference)
        except ray.exceptions.OutOfMemoryError:
            self._n_short += 1
            raise
        self._n_short = 0
        return result

    def run(self, unit: Any, deaths: int) -> Any:
        """Return what comes of a unit, while no other is worked on.

        Raises
        ------
        DiedError
            So many workers have died of it.
        """
        attempts = _Attempts(unit, deaths)
        while True:
            self.start(attempts)
            try:
                return self.get(self.wait()[1])
            except ray.exceptions.RayError as error:
                if not attempts.may_go_on(error):
                    raise DiedError(_one_line(error)) from error

    def cancel(self) -> None:
        """End all that still run."""
        for reference in self.running:
            ray.cancel(reference, force=True)


def _check_deadly(attempts: _Attempts, error: ray.exceptions.RayError, n_others: int) -> Any:
    """Return a unit that workers die of, if it can be narrowed down and is one of few."""
    if not isinstance(attempts.unit, Divisible):
        raise ResourceError(
            f"a unit of work lost its worker process {attempts.n_died} times: {_one_line(error)}"
        ) from error
    if n_others >= MAX_DEADLY:
        raise ResourceError(
            f"more than {MAX_DEADLY} units of work have each lost their worker process {attempts.n_died} times, which "
            f"no file is the reason of: {_one_line(error)}"
        ) from error
    return attempts.unit


def _apply(function: Callable[[Work], Result], unit: Work) -> Result:
    return function(unit)


def _get(reference: Any) -> Any:
    """Return a task's result, or raise what the task raised as itself."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        raise cause from error


def _one_line(error: Exception) -> str:
    """Return what is wrong, without what Ray adds where memory is short: pages on all processes of a node."""
    text = str(error)
    return " ".join((text.partition("\n")[0] if isinstance(error, ray.exceptions.OutOfMemoryError) else text).split())
