"""One shard of a store from the recordings that belong in it: the work of one worker at a time.

What is here, and in the parts that it puts together, says which numbers come out; who does it, and when, does not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import columns
from pipeline.artifact import TABLE_SCHEMA
from pipeline.clips import Clip, Rejection, ids_of
from pipeline.errors import AudioError
from pipeline.isolation import IsolatedLoader
from pipeline.levels import Leveller
from pipeline.loader import Loader
from pipeline.normaliser import MinMaxNormaliser
from pipeline.padder import Padder
from pipeline.recording import Facts, Recording
from pipeline.reuse import Lines, Previous
from pipeline.room import join, keep_memory, room
from pipeline.spectrogram import LogSpectrogramExtractor
from pipeline.store import Saver
from pipeline.units import Survey, Surveyed, Unit, UnitResult

BLOCK_CLIPS = 32
# Rows that are computed together, so that the second step finds in the cache what the first left there.
_CACHED_ROWS = 8
# The columns that are known once all clips are: which shard a row stands in, and what its id says.
LATE_COLUMNS = ("shard", "label", "group", "split")
# Those that say of each row what is known of its recording.
_OF_RECORDING = "sha256 source_rate source_channels source_samples source_start source_stop decoder".split()
ROW_SCHEMA = pa.schema([column for column in TABLE_SCHEMA if column.name not in LATE_COLUMNS])


class _Rows(NamedTuple):
    """Normalised spectrograms (n, n_bins, n_frames) and what their lines say of each."""

    x: NDArray[np.float32]
    min_db: NDArray[np.float32]
    max_db: NDArray[np.float32]
    peak: NDArray[np.float32]
    gain_db: NDArray[np.float32]

    def part(self, start: int, stop: int) -> "_Rows":
        return _Rows(*[values[start:stop] for values in self])


class ShardMaker:
    """Loads, pads, extracts, normalises and saves the clips of a unit, or copies what an earlier run made of them.

    Parameters
    ----------
    loader : Loader or IsolatedLoader
    padder : Padder
    extractor : LogSpectrogramExtractor
    normaliser : MinMaxNormaliser
    saver : Saver
    leveller : Leveller
    n_overlap : int, optional
        Samples that a segment shares with the next; by default only the first segment is made.
    previous : Previous, optional
        Rows that need not be computed.
    """

    def __init__(
        self,
        loader: Loader | IsolatedLoader,
        padder: Padder,
        extractor: LogSpectrogramExtractor,
        normaliser: MinMaxNormaliser,
        saver: Saver,
        leveller: Leveller,
        n_overlap: int | None = None,
        previous: Previous | None = None,
    ) -> None:
        self._leveller = leveller
        self._loader = loader
        self._padder = padder
        self._extractor = extractor
        self._normaliser = normaliser
        self._saver = saver
        self._n_overlap = n_overlap
        self._previous = previous

    def survey(self, survey: Survey) -> Surveyed:
        """Return digest, rate, channels and length of some clips, or why they cannot be used."""
        condemned = {each.clip_id: each for each in survey.condemned}
        known = self._recall([clip for clip in survey.clips if clip.clip_id not in condemned])
        found = tuple(
            condemned.get(clip.clip_id) or known.get(clip.clip_id) or self._examine(clip) for clip in survey.clips
        )
        return Surveyed(survey.start, len(survey.clips), found)

    def count_segments(self, facts: Facts) -> int:
        """Return how many segments are made of a recording."""
        if self._n_overlap is None:
            return 1
        n_samples = self._loader.count_resampled(facts)
        return self._padder.count_segments(n_samples, self._loader.n_samples, self._n_overlap)

    def make(self, unit: Unit) -> UnitResult:
        """Make one shard. Pure but for the file it writes: any worker gives the same bytes."""
        keep_memory()
        room.clear()
        draft = _Draft(self._previous, rejected=[*unit.condemned])
        starts, stops = self._find(unit)
        if kept := self._keep(unit, starts, stops, draft):
            return kept
        earlier = [np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)]
        known = [lines if draft.is_intact(lines) else lines[:0] for lines in earlier]
        for start in range(0, len(unit.clips), BLOCK_CLIPS):
            places = range(start, min(start + BLOCK_CLIPS, len(unit.clips)))
            short = [place for place in places if not len(known[place]) and self._count(unit, place) == 1]
            computed = dict(zip(short, self._compute_short([unit.clips[place] for place in short]), strict=True))
            for place in places:
                clip = unit.clips[place]
                if len(known[place]):
                    draft.copy(clip, known[place])
                elif place not in computed:
                    self._add_segments(unit, place, draft)
                elif isinstance(found := computed[place], AudioError):
                    draft.reject(clip, found)
                else:
                    draft.add(clip, found[0], 0, 0.0, [found[1]])
        is_kept = draft.pieces and not unit.is_trial
        shard = self._saver.save_shard(unit.prefix, join(draft.pieces)) if is_kept else None
        n_computed = draft.n_computed if unit.n_clips else 0
        return UnitResult(
            unit.prefix,
            unit.n_clips,
            shard,
            draft.table(),
            tuple(draft.rejected),
            n_computed,
            is_part=unit.segments is not None,
        )

    def _keep(self, unit: Unit, starts: Lines, stops: Lines, draft: "_Draft") -> UnitResult | None:
        """Return what is known of a unit of which an earlier run has the whole shard, which stays as it is."""
        n_lines = stops - starts
        if self._previous is None or draft.reader is None or not len(n_lines) or not n_lines.all():
            return None
        # The lines of each clip are neighbours: count on from the first.
        firsts = np.cumsum(n_lines) - n_lines
        lines = np.arange(n_lines.sum()) + np.repeat(starts - firsts, n_lines)
        shard = draft.reader.whole_shard(lines, unit.prefix)
        if shard is None:
            return None
        clip_ids = [clip_id for clip_id, n in zip(ids_of(unit.clips), n_lines.tolist(), strict=True) for _ in range(n)]
        rows = _copied_lines(self._previous, lines, clip_ids)
        return UnitResult(unit.prefix, unit.n_clips, shard, rows, unit.condemned, 0, is_part=unit.segments is not None)

    def _recall(self, clips: Sequence[Clip]) -> dict[str, Facts]:
        """Return what an earlier run has found out about some clips, by their ids."""
        if self._previous is None:
            return {}
        read = self._digests(clips)
        starts, stops = self._previous.find([sha256 for sha256, _ in read], ids_of(clips))
        places = np.flatnonzero(starts < stops).tolist()
        stamps = [read[place][1] for place in places]
        names = [clips[place].clip_id for place in places]
        return dict(zip(names, self._previous.facts(starts[places], stamps), strict=True))

    def _examine(self, clip: Clip) -> Facts | Rejection:
        try:
            return self._loader.examine(clip.path)
        except AudioError as error:
            return Rejection(clip.clip_id, error.reason, error.detail)

    def _count(self, unit: Unit, place: int) -> int:
        """Return how many segments a clip has."""
        return 1 if unit.facts is None else self.count_segments(unit.facts[place])

    def _find(self, unit: Unit) -> tuple[Lines, Lines]:
        """Return where the lines of an earlier run that hold what is wanted of each clip start and stop."""
        if self._previous is None:
            nothing = np.zeros(len(unit.clips), dtype=np.int64)
            return nothing, nothing
        facts = unit.facts
        digests = [each.sha256 for each in facts] if facts else [sha256 for sha256, _ in self._digests(unit.clips)]
        starts, stops = self._previous.find(digests, ids_of(unit.clips))
        if unit.facts and unit.segments is not None:
            n_channels = 1 if self._loader.mono else unit.facts[0].source_channels
            is_complete = stops[0] - starts[0] == self._count(unit, 0) * n_channels
            wanted = unit.segments if is_complete else range(0)
            return starts + wanted.start * n_channels, starts + wanted.stop * n_channels
        return starts, stops

    def _digests(self, clips: Sequence[Clip]) -> list[tuple[str, tuple[int, int, int]]]:
        """Return digests and stamps of clips, empty ones where they cannot be read, which loading them will say."""
        found, digest = [], self._loader.digest
        for clip in clips:
            try:
                found.append(digest(clip.path))
            except AudioError:
                found.append(("", (0, 0, 0)))
        return found

    def _compute_short(self, clips: Sequence[Clip]) -> Iterator[tuple[Recording, _Rows] | AudioError]:
        """Yield each clip's first segment, and what was wrong with it where it has none."""
        loaded = self._loader.load_many(clip.path for clip in clips)
        recordings = [each for each in loaded if isinstance(each, Recording)]
        rows = self._compute_each([recording.y for recording in recordings]) if recordings else iter(())
        for each in loaded:
            yield each if isinstance(each, AudioError) else (each, next(rows))

    def _add_segments(self, unit: Unit, place: int, draft: "_Draft") -> None:
        """Add the segments of a recording that is longer than one."""
        assert unit.facts is not None
        assert self._n_overlap is not None
        clip, facts = unit.clips[place], unit.facts[place]
        segments = range(self._count(unit, place)) if unit.segments is None else unit.segments
        step_s = (self._loader.n_samples - self._n_overlap) / self._loader.sample_rate
        try:
            rows = [
                each
                for block in self._loader.stream(clip.path, facts, segments, self._n_overlap)
                for each in self._compute_each(block)
            ]
        except AudioError as error:
            draft.reject(clip, error)
        else:
            draft.add(clip, facts, segments.start, step_s, rows)

    def _compute_each(self, signals: list[NDArray[np.float32]]) -> Iterator[_Rows]:
        """Yield what `_compute` makes of each signal."""
        rows, stop = self._compute(signals), 0
        for y in signals:
            start, stop = stop, stop + len(y)
            yield rows.part(start, stop)

    def _compute(self, signals: list[NDArray[np.float32]]) -> _Rows:
        """Return the rows of signals (n_channels, n_samples), one for each channel of each."""
        y = self._padder.stack(signals, self._loader.n_samples)
        peak = np.maximum(np.abs(y.max(axis=-1)), np.abs(y.min(axis=-1)))
        gain_db = self._leveller.gains_db(y, peak)
        y = self._leveller.apply(y, gain_db)
        x = room.take((len(y), self._extractor.n_bins, self._extractor.n_frames(y.shape[1])))
        min_db, max_db = np.empty((2, len(y)), dtype=np.float32)
        for start in range(0, len(y), _CACHED_ROWS):
            some = slice(start, start + _CACHED_ROWS)
            S_db = self._extractor.extract(y[some], out=x[some])
            _, min_db[some], max_db[some] = self._normaliser.normalise(S_db, out=S_db)
        return _Rows(x, min_db, max_db, peak, gain_db)


@dataclass
class _Draft:
    """A shard that is being put together, of computed rows and of copied ones."""

    previous: Previous | None
    pieces: list[NDArray[np.float32]] = field(default_factory=list)
    rejected: list[Rejection] = field(default_factory=list)
    n_computed: int = 0

    def __post_init__(self) -> None:
        self.reader = self.previous.reader() if self.previous else None
        self._computed: dict[str, list[Any]] = {name: [] for name in ROW_SCHEMA.names}
        self._copied: list[Lines] = []
        self._copied_ids: list[str] = []
        # For each row whether it is a copied one.
        self._is_copied: list[bool] = []

    def add(self, clip: Clip, facts: Facts | Recording, first: int, step_s: float, rows: list[_Rows]) -> None:
        """Add a clip's segments from the first one given, each the rows of its channels."""
        self.n_computed += 1
        for segment, each in enumerate(rows, start=first):
            n_rows = len(each.x)
            for name, value in (
                ("clip_id", clip.clip_id),
                ("segment", segment),
                ("start_s", facts.source_start / facts.source_rate + segment * step_s),
                *((name, getattr(facts, name)) for name in _OF_RECORDING),
            ):
                self._computed[name].extend([value] * n_rows)
            self._computed["channel"].extend(range(n_rows))
            for name in ("min_db", "max_db", "peak", "gain_db"):
                self._computed[name].extend(getattr(each, name).tolist())
            self._is_copied.extend([False] * n_rows)
            self.pieces.append(each.x)

    def copy(self, clip: Clip, lines: Lines) -> None:
        """Add what an earlier run made of the same content."""
        assert self.reader is not None
        self.pieces.extend(self.reader.rows(lines))
        self._copied.append(lines)
        self._copied_ids.extend([clip.clip_id] * len(lines))
        self._is_copied.extend([True] * len(lines))

    def reject(self, clip: Clip, error: AudioError) -> None:
        """Leave a clip out."""
        self.rejected.append(Rejection(clip.clip_id, error.reason, error.detail))

    def is_intact(self, lines: Lines) -> bool:
        """Return whether there are lines whose rows are as they were written."""
        return self.reader is not None and len(lines) > 0 and self.reader.is_intact(lines)

    def table(self) -> pa.Table:
        """Return the rows' lines."""
        self._computed["row"] = [0] * len(self._computed["clip_id"])
        table = pa.table(
            [columns.column(self._computed[each.name], each.type) for each in ROW_SCHEMA], schema=ROW_SCHEMA
        )
        if self.previous is not None and self._copied:
            copied = _copied_lines(self.previous, np.concatenate(self._copied), self._copied_ids)
            is_copied = np.asarray(self._is_copied)
            order = np.empty(len(is_copied), dtype=np.int64)
            order[is_copied] = np.arange(len(copied))
            order[~is_copied] = np.arange(len(copied), len(is_copied))
            table = pa.concat_tables([copied, table]).combine_chunks().take(columns.numbers(order, pa.int64()))
        return _replace(table, "row", range(len(table)))


def _copied_lines(previous: Previous, lines: Lines, clip_ids: list[str]) -> pa.Table:
    """Return lines of an earlier run, under the ids that their clips have now."""
    found = previous.lines.select(ROW_SCHEMA.names)
    # Those of a shard that is kept follow each other, and are not copied.
    is_run = lines[-1] - lines[0] == len(lines) - 1 and (np.diff(lines) == 1).all()
    found = found.slice(lines[0], len(lines)) if is_run else found.take(columns.numbers(lines, pa.int64()))
    return _replace(found, "clip_id", clip_ids)


def _replace(table: pa.Table, name: str, values: Sequence[Any]) -> pa.Table:
    """Return a table with other values in one of its columns."""
    column = table.schema.field(name)
    return table.set_column(table.schema.get_field_index(name), column, columns.column(values, column.type))
