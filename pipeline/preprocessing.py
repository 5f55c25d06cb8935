"""PreprocessingPipeline: load, pad, extract, normalise and save, in that order, over the clips of a shard.

A shard holds the clips whose ids' hashes share a prefix, sorted by id: so its bytes follow from the corpus and the
parameters alone, whoever made it, in whatever order, beside whatever else.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import columns
from pipeline.artifact import TABLE_SCHEMA, Format
from pipeline.clips import Clips, Rejection
from pipeline.corpus import Corpus, Splitter, list_clips
from pipeline.errors import CorpusError, ParameterError
from pipeline.isolation import IsolatedLoader
from pipeline.levels import Leveller
from pipeline.loader import Loader
from pipeline.normaliser import MinMaxNormaliser
from pipeline.padder import Padder
from pipeline.planner import plan_segments, plan_starts, plan_surveys
from pipeline.recording import Facts
from pipeline.reuse import Previous, read_previous
from pipeline.shards import ShardMaker
from pipeline.silence import QUIET
from pipeline.spectrogram import LogSpectrogramExtractor
from pipeline.store import Saver
from pipeline.summary import count_notable, durations_s, first_lines
from pipeline.units import Unit, UnitResult
from pipeline.versions import are_current, decoder_versions, numeric_versions


@dataclass(frozen=True)
class Report:
    """What became of a corpus.

    Attributes
    ----------
    counts : Counter
        Of clips by what was noticed: `clips`, `rows`, `segments`, `ignored`, `rejected`, `quiet` (left out for their
        level), `cut` (longer than what was used of them), `trimmed`, `padded`, `silent`, `resampled`, `folded`,
        `levelled`, `duplicates` (of another clip's content), `computed`, `reused` and `removed` since the run before,
        and each split.
    hours : float
        Of sound in the files that were used.
    rejected : tuple of Rejection
        Those that were left out for their level too.
    store : Format
    """

    counts: Counter[str]
    hours: float
    rejected: tuple[Rejection, ...]
    store: Format


MapUnits = Callable[[Callable[[Any], Any], list[Any]], Iterable[Any]]


class PreprocessingPipeline:
    """Turns every sound of a folder into a row of a store.

    Parameters
    ----------
    loader : Loader
    padder : Padder
    extractor : LogSpectrogramExtractor
    normaliser : MinMaxNormaliser
    saver : Saver
    splitter : Splitter, optional
        Labels and splits; by default no label, every clip its own group, a tenth each for validation and test.
    max_rejected_share : float
        `preprocess` ends in an error when more of the recordings than this cannot be used.
    segment : {'first', 'all'}
        Whether the first `loader.duration_s` of a recording become a row, or all of it becomes rows.
    overlap : float
        Share of a segment that the next one repeats, at most a half.
    leveller : Leveller, optional
        By default every sound keeps its level.

    Raises
    ------
    ParameterError
        Segments would overlap by more than half.

    Examples
    --------
    >>> pipeline = PreprocessingPipeline(
    ...     Loader(22050, 0.74, mono=True), Padder(), LogSpectrogramExtractor(512, 256), MinMaxNormaliser(0, 1),
    ...     Saver("data/spectrograms", "data/min_max_values.parquet"))
    >>> report = pipeline.preprocess("recordings")  # doctest: +SKIP
    """

    def __init__(
        self,
        loader: Loader,
        padder: Padder,
        extractor: LogSpectrogramExtractor,
        normaliser: MinMaxNormaliser,
        saver: Saver,
        splitter: Splitter | None = None,
        max_rejected_share: float = 0.05,
        segment: Literal["first", "all"] = "first",
        overlap: float = 0.0,
        leveller: Leveller | None = None,
    ) -> None:
        if not 0.0 <= overlap <= 0.5:
            raise ParameterError(f"overlap={overlap} must be between 0 and 0.5")
        self.loader = loader
        self.padder = padder
        self.extractor = extractor
        self.normaliser = normaliser
        self.saver = saver
        self.splitter = splitter or Splitter()
        self.max_rejected_share = max_rejected_share
        self.segment = segment
        self.overlap = float(overlap)
        self.leveller = leveller or Leveller()

    @property
    def shape(self) -> tuple[int, int]:
        """(n_bins, n_frames) of a row."""
        return self.extractor.n_bins, self.extractor.n_frames(self.loader.n_samples)

    @property
    def row_bytes(self) -> int:
        """Size of a row on disk."""
        return self.saver.value_bytes * self.shape[0] * self.shape[1]

    @property
    def n_overlap(self) -> int:
        """Samples that a segment shares with the next."""
        return int(self.overlap * self.loader.n_samples)

    @property
    def parameters(self) -> dict[str, Any]:
        """Every parameter that shapes the numbers."""
        return {
            "sample_rate": self.loader.sample_rate,
            "duration_s": self.loader.duration_s,
            "mono": self.loader.mono,
            "fold": self.loader.fold,
            "resampling": self.loader.quality,
            "trim_db": self.loader.trim_db,
            "min_level_db": self.loader.min_level_db,
            "level": self.leveller.level,
            "level_db": self.leveller.target_db if self.leveller.level else 0.0,
            "segment": self.segment,
            "overlap": self.overlap if self.segment == "all" else 0.0,
            "pad_mode": self.padder.mode,
            "n_fft": self.extractor.n_fft,
            "hop_length": self.extractor.hop_length,
            "drop_nyquist": self.extractor.drop_nyquist,
            "ref": self.extractor.ref,
            "amin": self.extractor.amin,
            "top_db": self.extractor.top_db,
            "range": [self.normaliser.low, self.normaliser.high],
            "dtype": self.saver.dtype,
        }

    def preprocess(self, folder: str | os.PathLike[str], map_units: MapUnits = map) -> Report:
        """Turn every sound below a folder into a row of the store.

        Parameters
        ----------
        folder : path-like
            The corpus.
        map_units : callable, optional
            As `map`: applies a function to every unit and yields the results, in any order. The default works
            here, one after the other; `pipeline.engine.map_units` spreads them over Ray.

        Raises
        ------
        CorpusError
            The folder holds nothing that can be used, or its splits contradict each other; an earlier store stays as
            it was. Or more is rejected than `max_rejected_share`; nothing reads as a store then.
        """
        return self.process_corpus(list_clips(Path(folder)), map_units)

    def process_corpus(
        self, corpus: Corpus, map_units: MapUnits = map, planned: Callable[[int], object] = lambda _: None
    ) -> Report:
        """Do what `preprocess` does, for clips that are already listed.

        `planned` is called with the number of rows that there will be, before the first is made.
        """
        # Refuses a contradiction in the split patterns before any work is done.
        described = self._describe(corpus.clips.ids)
        versions = numeric_versions(("pyloudnorm", "scipy") if self.leveller.level == "loudness" else ())
        previous = self._read_previous(self.saver.prepare(), versions)
        earlier = None if previous is None else previous.clip_ids()
        results, unusable = self._make(corpus.clips, previous, map_units, planned)
        # The largest that there is.
        del previous
        rejected = sorted(
            {*corpus.rejected, *unusable, *(each for result in results for each in result.rejected)},
            key=lambda rejection: (rejection.clip_id, rejection.reason, rejection.detail),
        )
        results = _without_rejected_parts(results, {each.clip_id for each in rejected})
        self._judge(len(corpus.clips) + len(corpus.rejected), tuple(rejected))
        shards = [result.shard for result in results if result.shard]
        n_computed = sum(result.n_computed for result in results)
        table = self._assemble(results, None if rejected else described)
        # Which hold all lines once more.
        del results
        versions |= decoder_versions(table["decoder"].unique().to_pylist())
        store = self.saver.finish(shards, table, self.shape, self.parameters, versions)
        clips = first_lines(table)
        counts = count_notable(clips, table, self.loader, self.n_overlap if self.segment == "all" else None)
        counts |= count_rejected(rejected) | Counter(ignored=corpus.n_ignored)
        counts["computed"] = n_computed
        counts["reused"] = counts["clips"] - counts["computed"]
        if earlier is not None:
            counts["removed"] = len(earlier) - pc.sum(pc.is_in(earlier, clips["clip_id"].combine_chunks())).as_py()
        return Report(counts, float(durations_s(clips).sum()) / 3600, tuple(rejected), store)

    def _make(
        self, clips: Clips, previous: Previous | None, map_units: MapUnits, planned: Callable[[int], object]
    ) -> tuple[list[UnitResult], list[Rejection]]:
        """Return what became of all units of work, and what was found to be unusable before."""
        maker = ShardMaker(
            IsolatedLoader(self.loader),
            self.padder,
            self.extractor,
            self.normaliser,
            self.saver,
            self.leveller,
            self.n_overlap if self.segment == "all" else None,
            previous,
        )
        units, unusable = self._plan(clips, maker, map_units)
        planned(sum(unit.n_rows for unit in units))
        return sorted(map_units(maker.make, units), key=lambda result: result.prefix), unusable

    def _read_previous(self, described: Format | None, versions: dict[str, Any]) -> Previous | None:
        """Return the rows of an earlier run that would be the same today."""
        if described is None or (described.parameters, described.shape) != (self.parameters, self.shape):
            return None
        if not are_current(versions, described.versions):
            return None
        return read_previous(self.saver.places, described, self.saver.table_path)

    def _plan(self, clips: Clips, maker: ShardMaker, map_units: MapUnits) -> tuple[list[Unit], list[Rejection]]:
        """Return the units of work, and what is found to be unusable before it starts."""
        if self.segment == "first":
            return plan_starts(clips, self.row_bytes), []
        found = sorted(map_units(maker.survey, plan_surveys(clips)), key=lambda surveyed: surveyed.start)
        all_facts = [facts for surveyed in found for facts in surveyed.facts]
        sized = [
            (clip, facts, maker.count_segments(facts))
            for clip, facts in zip(clips, all_facts, strict=True)
            if isinstance(facts, Facts)
        ]
        rejected = [facts for facts in all_facts if isinstance(facts, Rejection)]
        return plan_segments(sized, self.row_bytes, self.loader.mono), rejected

    def _judge(self, n_found: int, rejected: tuple[Rejection, ...]) -> None:
        """Refuse a corpus of which too much cannot be used; what was left out because it is quiet was asked for."""
        if not rejected:
            return
        unusable = [each for each in rejected if each.reason != QUIET]
        first = (unusable or rejected)[0]
        example = f"the first is {first.clip_id!r}: {first.reason}: {first.detail}"
        if len(unusable) / n_found > self.max_rejected_share or len(unusable) == n_found:
            raise RejectedError(
                f"{len(unusable)} of {n_found} recordings cannot be used, and preprocess.max_rejected_share="
                f"{self.max_rejected_share} allows {self.max_rejected_share:.0%}; {example}",
                rejected,
            )
        if len(rejected) == n_found:
            raise RejectedError(f"none of {n_found} recordings is left; {example}", rejected)

    def _assemble(self, results: list[UnitResult], described: pa.Table | None) -> pa.Table:
        """Put the rows of all units together, with shard, label, group and split."""
        results = [result for result in results if result.shard]
        table = pa.concat_tables([result.rows for result in results])
        if described is None:
            described = self._describe(pc.unique(table["clip_id"]).to_pylist())
        shard = np.repeat(np.arange(len(results), dtype=np.int32), [len(result.rows) for result in results])
        late = described.take(pc.index_in(table["clip_id"], described["clip_id"])).set_column(
            0, TABLE_SCHEMA.field("shard"), columns.numbers(shard, pa.int32())
        )
        for column in late.schema:
            table = table.append_column(column, late[column.name])
        return table.select(TABLE_SCHEMA.names).combine_chunks()

    def _describe(self, clip_ids: Sequence[str]) -> pa.Table:
        """Return label, group and split of clips, as columns of the table."""
        found = self.splitter.describe_all(clip_ids)
        schema = pa.schema([TABLE_SCHEMA.field(name) for name in ("clip_id", "label", "group", "split")])
        ids, labels, splits = map(columns.strings, (clip_ids, found.labels, found.splits))
        groups = ids if found.groups is clip_ids else columns.strings(found.groups)
        return pa.table([ids, labels, groups, splits], schema=schema)


class RejectedError(CorpusError):
    """Too much of a corpus cannot be used; `rejected` says what and why."""

    def __init__(self, message: str, rejected: tuple[Rejection, ...]) -> None:
        super().__init__(message)
        self.rejected = rejected


def count_rejected(rejected: Iterable[Rejection]) -> Counter[str]:
    """Return how many recordings cannot be used, and how many are left out because they are quiet."""
    return Counter(QUIET if each.reason == QUIET else "rejected" for each in rejected)


def _without_rejected_parts(results: list[UnitResult], rejected: set[str]) -> list[UnitResult]:
    """Leave out the shards of a recording of which another part cannot be used."""
    return [
        result
        for result in results
        if not (result.is_part and result.shard) or result.rows["clip_id"][0].as_py() not in rejected
    ]
