"""Ray: connect to it, and map a function over units of work. Knows nothing of sound."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal, TypeVar

import ray
import ray.exceptions

from pipeline.errors import ResourceError

# It warns that an embedded Ray asks for a token, which is as it should be, and tells how to turn that off.
_TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"

Work = TypeVar("Work")
Result = TypeVar("Result")


@contextmanager
def connect(verbose: bool = False) -> Iterator[int]:
    """Connect to Ray for the length of a `with` block, and yield how many CPUs it reaches.

    `RAY_ADDRESS` unset: an embedded Ray on this machine that ends with the block. `auto` or `host:port`, on a machine
    that is part of a cluster: that cluster.

    Parameters
    ----------
    verbose : bool
        Whether what the workers print is shown here. Ray keeps it in its session's log in any case.

    Raises
    ------
    ResourceError
        The address is of another kind, or no cluster answers there.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if "://" in address:
        raise ResourceError(
            f"RAY_ADDRESS={address} must be unset, 'auto' or host:port on a machine that is part of the cluster"
        )
    options: dict[str, Any] = {"address": address} if address else {"include_dashboard": False}
    logging.getLogger(_TOKEN_LOGGER).setLevel(logging.ERROR)
    try:
        ray.init(log_to_driver=verbose, logging_level=logging.WARNING, **options)
    except (ConnectionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ResourceError(f"RAY_ADDRESS={address}: no cluster answers there: {reason}") from error
    try:
        yield int(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()


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
