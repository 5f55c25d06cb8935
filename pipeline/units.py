"""Units of preprocessing: what one worker does at a time, what becomes of it, and how a unit is done without a clip.

A unit can be narrowed down by `pipeline.narrowing`: its halves do the same to fewer clips and leave nothing behind.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from pipeline import columns
from pipeline.artifact import Shard
from pipeline.clips import Clip, Rejection
from pipeline.recording import Facts


@dataclass(frozen=True)
class Unit:
    """One shard to be made.

    Attributes
    ----------
    prefix : str
        First part of the shard's name.
    clips : sequence of Clip
    facts : tuple of Facts, optional
        Of each clip, when every segment of them is wanted.
    n_rows : int
        As planned; when channels are not folded and only starts are wanted, there may be more.
    segments : range, optional
        Of the one clip that is too long for one unit.
    condemned : tuple of Rejection
        Clips that belong here, and that no worker survives.
    is_trial : bool
        Whether it is done to see whether a worker survives it, and nothing is kept.
    """

    prefix: str
    clips: Sequence[Clip]
    n_rows: int
    facts: tuple[Facts, ...] | None = None
    segments: range | None = None
    condemned: tuple[Rejection, ...] = ()
    is_trial: bool = False

    @property
    def n_clips(self) -> int:
        """How many clips are done when this unit is, so that a long one counts once."""
        return 0 if self.segments and self.segments.start else len(self.clips) + len(self.condemned)

    def halves(self) -> tuple["Unit", ...]:
        """Return two trials that do as much together, or nothing for a single clip."""
        middle = len(self.clips) // 2
        parts = (slice(middle), slice(middle, None)) if middle else ()
        return tuple(
            replace(self, clips=self.clips[part], facts=self.facts and self.facts[part], is_trial=True)
            for part in parts
        )

    def without(self, culprits: Iterable["Unit"], reason: str, detail: str) -> "Unit":
        """Return this unit without the clips of others, which are rejected."""
        condemned = _reject(culprits, reason, detail)
        names = {each.clip_id for each in condemned}
        kept = [place for place, clip in enumerate(self.clips) if clip.clip_id not in names]
        return replace(
            self,
            clips=tuple(self.clips[place] for place in kept),
            facts=self.facts and tuple(self.facts[place] for place in kept),
            condemned=(*self.condemned, *condemned),
        )


@dataclass(frozen=True)
class UnitResult:
    """What became of a unit; the shard is None when no clip of it could be used."""

    prefix: str
    n_clips: int
    shard: Shard | None
    rows: pa.Table
    rejected: tuple[Rejection, ...]
    n_computed: int
    is_part: bool

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "rows": columns.pack(self.rows)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, rows=columns.unpack(state["rows"]))


@dataclass(frozen=True)
class Survey:
    """Clips to be examined before the work is planned; those that are condemned are not opened."""

    start: int
    clips: Sequence[Clip]
    condemned: tuple[Rejection, ...] = ()

    def halves(self) -> tuple["Survey", ...]:
        """Return two surveys of as many clips together, or nothing for a single clip."""
        middle = len(self.clips) // 2
        return (Survey(0, self.clips[:middle]), Survey(0, self.clips[middle:])) if middle else ()

    def without(self, culprits: Iterable["Survey"], reason: str, detail: str) -> "Survey":
        """Return this survey with the clips of others rejected."""
        return replace(self, condemned=(*self.condemned, *_reject(culprits, reason, detail)))


@dataclass(frozen=True)
class Surveyed:
    """What is known of each clip of a survey."""

    start: int
    n_clips: int
    facts: tuple[Facts | Rejection, ...]


def _reject(units: Iterable[Unit | Survey], reason: str, detail: str) -> tuple[Rejection, ...]:
    return tuple(Rejection(clip.clip_id, reason, detail) for unit in units for clip in unit.clips)
