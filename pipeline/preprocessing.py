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

from pipeline.corpus import Clip, Corpus, Description, Rejection, Splitter, hash_prefix, list_clips
from pipeline.errors import CorpusError, ParameterError
from pipeline.loader import Facts, Loader, count_samples
from pipeline.normaliser import MinMaxNormaliser
from pipeline.padder import Padder
from pipeline.resampler import count_resampled
from pipeline.reuse import Previous, read_previous
from pipeline.shards import ShardMaker, Survey, Unit, UnitResult
from pipeline.spectrogram import LogSpectrogramExtractor
from pipeline.store import TABLE_SCHEMA, Format, Saver
from pipeline.versions import numeric_versions

SHARD_BYTES = 32 << 20
# Of a long recording in one shard, however small they are.
SHARD_SEGMENTS = 1024
SURVEY_CLIPS = 128


@dataclass(frozen=True)
class Report:
    """What became of a corpus.

    Attributes
    ----------
    counts : Counter
        Of clips by what was noticed: `clips`, `rows`, `segments`, `ignored`, `rejected`, `truncated` (longer than what
        was used of them), `padded`, `silent`, `resampled`, `folded`, `duplicates` (of another clip's content),
        `computed`, `reused` and `removed` since the run before, and each split.
    hours : float
        Of sound in the files that were used.
    rejected : tuple of Rejection
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

    @property
    def shape(self) -> tuple[int, int]:
        """(n_bins, n_frames) of a row."""
        return self.extractor.n_bins, self.extractor.n_frames(self.loader.n_samples)

    @property
    def row_bytes(self) -> int:
        """Size of a row on disk."""
        return 4 * self.shape[0] * self.shape[1]

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
            "segment": self.segment,
            "overlap": self.overlap,
            "pad_mode": self.padder.mode,
            "n_fft": self.extractor.n_fft,
            "hop_length": self.extractor.hop_length,
            "drop_nyquist": self.extractor.drop_nyquist,
            "ref": self.extractor.ref,
            "amin": self.extractor.amin,
            "top_db": self.extractor.top_db,
            "range": [self.normaliser.low, self.normaliser.high],
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
        clip_ids = [clip.clip_id for clip in corpus.clips]
        # Refuses a contradiction in the split patterns before any work is done.
        described = dict(zip(clip_ids, self.splitter.describe(clip_ids), strict=True))
        versions = numeric_versions()
        previous = self._read_previous(self.saver.prepare(), versions)
        maker = ShardMaker(
            self.loader,
            self.padder,
            self.extractor,
            self.normaliser,
            self.saver,
            self.n_overlap if self.segment == "all" else None,
            previous,
        )
        units, rejected = self._plan(corpus.clips, maker, map_units)
        planned(sum(unit.n_rows for unit in units))
        results = sorted(map_units(maker.make, units), key=lambda result: result.prefix)
        rejected = sorted(
            {*corpus.rejected, *rejected, *(each for result in results for each in result.rejected)},
            key=lambda rejection: (rejection.clip_id, rejection.reason, rejection.detail),
        )
        results = _without_rejected_parts(results, {each.clip_id for each in rejected})
        self._judge(len(corpus.clips) + len(corpus.rejected), tuple(rejected))
        if rejected:
            described = {}
        table = self._assemble(results, described)
        shards = [result.shard for result in results if result.shard]
        store = self.saver.finish(shards, table, self.shape, self.parameters, versions)
        clips = _one_line_each(table)
        counts = self._count(clips, table)
        counts |= Counter(ignored=corpus.n_ignored, rejected=len(rejected))
        counts["computed"] = sum(result.n_computed for result in results)
        counts["reused"] = counts["clips"] - counts["computed"]
        if previous is not None:
            counts["removed"] = len(set(previous.lines["clip_id"].to_pylist()).difference(clips["clip_id"].to_pylist()))
        seconds = pc.divide(clips["source_samples"].cast(pa.float64()), clips["source_rate"].cast(pa.float64()))
        return Report(counts, pc.sum(seconds).as_py() / 3600, tuple(rejected), store)

    def _read_previous(self, described: Format | None, versions: dict[str, Any]) -> Previous | None:
        """Return the rows of an earlier run that would be the same today."""
        if described is None or (described.parameters, described.versions, described.shape) != (
            self.parameters,
            versions,
            self.shape,
        ):
            return None
        return read_previous(self.saver.folder, described, self.saver.table_path)

    def _plan(
        self, clips: Sequence[Clip], maker: ShardMaker, map_units: MapUnits
    ) -> tuple[list[Unit], list[Rejection]]:
        """Return the units of work, and what is found to be unusable before it starts."""
        if self.segment == "first":
            return self.plan(clips), []
        surveys = [
            Survey(start, tuple(clips[start : start + SURVEY_CLIPS])) for start in range(0, len(clips), SURVEY_CLIPS)
        ]
        found = sorted(map_units(maker.survey, surveys), key=lambda surveyed: surveyed.start)
        all_facts = [facts for surveyed in found for facts in surveyed.facts]
        rejected = [facts for facts in all_facts if isinstance(facts, Rejection)]
        usable = [
            (clip, facts) for clip, facts in zip(clips, all_facts, strict=True) if not isinstance(facts, Rejection)
        ]
        return self.plan_segments(usable), rejected

    def plan(self, clips: Iterable[Clip]) -> list[Unit]:
        """Deal clips out to units by the hash of their ids, about 32 MiB of rows each, a row of each clip."""
        clips = list(clips)
        prefixes = self._deal([clip.clip_id for clip in clips], len(clips))
        members: dict[str, list[Clip]] = {}
        for clip, prefix in zip(clips, prefixes, strict=True):
            members.setdefault(prefix, []).append(clip)
        return [Unit(prefix, tuple(members[prefix]), len(members[prefix])) for prefix in sorted(members)]

    def plan_segments(self, clips: Sequence[tuple[Clip, Facts]]) -> list[Unit]:
        """Deal clips out as `plan` does, all segments of each; recordings that fill a unit have units of their own."""
        limit = max(1, min(SHARD_SEGMENTS, SHARD_BYTES // self.row_bytes))
        units: list[Unit] = []
        short: list[tuple[Clip, Facts, int]] = []
        for clip, facts in clips:
            n_channels = 1 if self.loader.mono else facts.source_channels
            n_segments = self.padder.count_segments(
                self.loader.count_resampled(facts), self.loader.n_samples, self.n_overlap
            )
            if n_segments * n_channels <= limit or n_segments == 1:
                short.append((clip, facts, n_segments * n_channels))
                continue
            step = max(1, limit // n_channels)
            name = f"{hash_prefix(clip.clip_id, 64):016x}"
            for start in range(0, n_segments, step):
                segments = range(start, min(start + step, n_segments))
                prefix = f"{name}.{start // step:06d}"
                units.append(Unit(prefix, (clip,), len(segments) * n_channels, (facts,), segments))
        prefixes = self._deal([clip.clip_id for clip, _, _ in short], sum(n_rows for _, _, n_rows in short))
        members: dict[str, list[tuple[Clip, Facts, int]]] = {}
        for each, prefix in zip(short, prefixes, strict=True):
            members.setdefault(prefix, []).append(each)
        for prefix in sorted(members):
            found, found_facts, n_rows = zip(*members[prefix], strict=True)
            units.append(Unit(prefix, found, sum(n_rows), found_facts))
        return units

    def _deal(self, clip_ids: list[str], n_rows: int) -> list[str]:
        """Return for each clip the first digits of its hash, as many as that many rows need shards."""
        n_bits = max(0, (-(-n_rows * self.row_bytes // SHARD_BYTES) - 1).bit_length())
        width = max(1, -(-n_bits // 4))
        return [f"{hash_prefix(clip_id, n_bits):0{width}x}" for clip_id in clip_ids]

    def _count(self, clips: pa.Table, table: pa.Table) -> Counter[str]:
        """Return what a person would want to know was done, from a line of each clip and the lines of all rows."""
        rate, channels, samples = (
            np.asarray(clips[name]) for name in ("source_rate", "source_channels", "source_samples")
        )
        pairs = np.unique(np.stack([rate, samples], axis=1), axis=0, return_inverse=True)
        wanted = {each: count_samples(self.loader.duration_s, each) for each in np.unique(rate).tolist()}
        is_longer = np.array([n > wanted[each] for each, n in pairs[0].tolist()])[pairs[1]]
        target = self.loader.sample_rate
        n_resampled = np.array([count_resampled(n, each, target) for each, n in pairs[0].tolist()])[pairs[1]]
        n_last = n_resampled
        if self.segment == "all":
            is_longer = np.zeros(len(clips), dtype=bool)
            n_last = np.where(
                n_resampled > self.loader.n_samples,
                self.loader.n_samples
                - (self.loader.n_samples - n_resampled) % (self.loader.n_samples - self.n_overlap),
                n_resampled,
            )
        loud = pc.unique(table.filter(pc.greater(table["peak"], 0.0))["clip_id"])
        counts = Counter(
            clips=len(clips),
            rows=len(table),
            segments=pc.sum(pc.equal(table["channel"], 0)).as_py(),
            truncated=int(is_longer.sum()),
            padded=int((n_last < self.loader.n_samples).sum()),
            silent=len(clips) - len(loud),
            resampled=int((rate != target).sum()),
            folded=int((channels > 1).sum()) if self.loader.mono else 0,
            duplicates=len(clips) - pc.count_distinct(clips["sha256"]).as_py(),
        )
        return counts + Counter(clips["split"].to_pylist())

    def _judge(self, n_found: int, rejected: tuple[Rejection, ...]) -> None:
        """Refuse a corpus of which too much cannot be used."""
        if not rejected:
            return
        share = len(rejected) / n_found
        first = rejected[0]
        if share > self.max_rejected_share or len(rejected) == n_found:
            raise RejectedError(
                f"{len(rejected)} of {n_found} recordings cannot be used, and preprocess.max_rejected_share="
                f"{self.max_rejected_share} allows {self.max_rejected_share:.0%}; the first is "
                f"{first.clip_id!r}: {first.reason}: {first.detail}",
                rejected,
            )

    def _assemble(self, results: list[UnitResult], described: dict[str, Description]) -> pa.Table:
        """Put the rows of all units together, with shard, label, group and split."""
        results = [result for result in results if result.shard]
        table = pa.concat_tables([result.rows for result in results])
        clip_ids = table["clip_id"].to_pylist()
        if not described:
            names = list(dict.fromkeys(clip_ids))
            described = dict(zip(names, self.splitter.describe(names), strict=True))
        found = [described[clip_id] for clip_id in clip_ids]
        late = {
            "shard": np.repeat(np.arange(len(results), dtype=np.int32), [len(result.rows) for result in results]),
            "label": [each.label for each in found],
            "group": [each.group for each in found],
            "split": [each.split for each in found],
        }
        for name, values in late.items():
            table = table.append_column(TABLE_SCHEMA.field(name), pa.array(values, TABLE_SCHEMA.field(name).type))
        return table.select(TABLE_SCHEMA.names).combine_chunks()


class RejectedError(CorpusError):
    """Too much of a corpus cannot be used; `rejected` says what and why."""

    def __init__(self, message: str, rejected: tuple[Rejection, ...]) -> None:
        super().__init__(message)
        self.rejected = rejected


def _without_rejected_parts(results: list[UnitResult], rejected: set[str]) -> list[UnitResult]:
    """Leave out the shards of a recording of which another part cannot be used."""
    return [
        result
        for result in results
        if not (result.is_part and result.shard) or result.rows["clip_id"][0].as_py() not in rejected
    ]


def _one_line_each(table: pa.Table) -> pa.Table:
    """Return the first line of each clip."""
    return table.filter(pc.and_(pc.equal(table["channel"], 0), pc.equal(table["segment"], 0)))
