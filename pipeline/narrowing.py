"""Which part of a unit of work it is that whoever works on it dies of. Knows neither Ray nor sound."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, Self, runtime_checkable

from pipeline.errors import ResourceError

# How many workers must die of a part before it is left out, so that none is for what befell its neighbours.
DEATHS = 3
# Where more than that are deadly, no file is the reason.
MAX_DEADLY = 16


class DiedError(Exception):
    """As many workers as were allowed have died of a unit; the message says of what."""


@runtime_checkable
class Divisible(Protocol):
    """A unit of work that can be done in parts, and without some of them."""

    def halves(self) -> Sequence[Self]:
        """Return smaller units, which leave nothing behind, or nothing for one that cannot be divided."""

    def without(self, culprits: Iterable[Self], reason: str, detail: str) -> Self:
        """Return this unit without some of its indivisible parts, which its result reports as rejected."""


def narrow(attempt: Callable[[Any, int], Any], unit: Divisible) -> Any:
    """Return what comes of a unit that workers died of, without those parts of it that they die of alone.

    Halves are tried, and halves of those that a worker dies of; a part that cannot be divided is tried until `DEATHS`
    workers have died of it. When none is found, the unit is tried as a whole, since it may have died of what was beside
    it.

    Parameters
    ----------
    attempt : callable
        Takes a unit and a number of deaths, and returns what comes of the unit, or raises a `DiedError` after so many.
    unit : Divisible

    Raises
    ------
    ResourceError
        No part is deadly by itself, and yet the whole is; or so many are that something else must be the reason.
    """
    culprits: list[Any] = []
    reason = ""
    for culprit, death in _find(attempt, unit):
        culprits.append(culprit)
        reason = str(death)
        if len(culprits) > MAX_DEADLY:
            raise ResourceError(f"more than {MAX_DEADLY} parts of one unit of work are deadly to workers: {reason}")
    if culprits:
        unit = unit.without(culprits, "worker died", f"the process that worked on it died {DEATHS} times")
    try:
        return attempt(unit, DEATHS)
    except DiedError as death:
        raise ResourceError(
            f"a unit of work lost its worker process {DEATHS} times, alone too, and by no part of it alone: {death}"
        ) from death


def _find(attempt: Callable[[Any, int], Any], unit: Any) -> Iterator[tuple[Any, DiedError]]:
    """Yield the smallest parts that are deadly by themselves, each with how the last worker died."""
    halves = unit.halves()
    try:
        attempt(unit, 1 if halves else DEATHS)
    except DiedError as death:
        if not halves:
            yield unit, death
        for half in halves:
            yield from _find(attempt, half)
