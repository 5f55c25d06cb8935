"""What workers are sent and what they send back: recordings to be examined, and those of one shard."""

from dataclasses import dataclass

import pyarrow as pa

from pipeline.artifact import Shard
from pipeline.corpus import Clip, Rejection
from pipeline.recording import Facts


@dataclass(frozen=True)
class Unit:
    """Work that one worker does at a time: one shard.

    Attributes
    ----------
    prefix : str
        First part of the shard's name.
    clips : tuple of Clip
    facts : tuple of Facts, optional
        Of each clip, when every segment of them is wanted.
    n_rows : int
        As planned; when channels are not folded and only starts are wanted, there may be more.
    segments : range, optional
        Of the one clip that is too long for one unit.
    """

    prefix: str
    clips: tuple[Clip, ...]
    n_rows: int
    facts: tuple[Facts, ...] | None = None
    segments: range | None = None

    @property
    def n_clips(self) -> int:
        """How many clips are done when this unit is, so that a long one counts once."""
        return 0 if self.segments and self.segments.start else len(self.clips)


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


@dataclass(frozen=True)
class Survey:
    """Clips to be examined before the work is planned."""

    start: int
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class Surveyed:
    """What is known of each clip of a survey."""

    start: int
    n_clips: int
    facts: tuple[Facts | Rejection, ...]
