"""PreprocessingPipeline: load, pad, extract, normalise and save, in that order, over the clips of a shard.

A shard holds the clips whose ids' hashes share a prefix, sorted by id: so its bytes follow from the corpus and the
parameters alone, whoever made it, in whatever order, beside whatever else.
"""

import importlib.metadata
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile as sf
from numpy.typing import NDArray

from pipeline.corpus import Clip, Corpus, Rejection, Splitter, hash_prefix, list_clips
from pipeline.errors import AudioError, CorpusError
from pipeline.loader import Loader, Recording, count_samples
from pipeline.normaliser import MinMaxNormaliser
from pipeline.padder import Padder
from pipeline.spectrogram import LogSpectrogramExtractor
from pipeline.store import TABLE_SCHEMA, Format, Saver, Shard

SHARD_BYTES = 32 << 20
_BLOCK_CLIPS = 32
# The columns that are known once all clips are: which shard a row stands in, and what its id says.
_LATE_COLUMNS = ("shard", "label", "group", "split")
_ROW_SCHEMA = pa.schema([column for column in TABLE_SCHEMA if column.name not in _LATE_COLUMNS])


@dataclass(frozen=True)
class Unit:
    """Work that one worker does at a time: the clips of one shard."""

    prefix: str
    clips: tuple[Clip, ...]


@dataclass(frozen=True)
class UnitResult:
    """What became of a unit; the shard is None when no clip of it could be used."""

    prefix: str
    n_clips: int
    shard: Shard | None
    rows: pa.Table
    rejected: tuple[Rejection, ...]
    counts: Counter[str]
    seconds: float


@dataclass(frozen=True)
class Report:
    """What became of a corpus.

    Attributes
    ----------
    counts : Counter
        Of clips by what was noticed: `clips`, `rows`, `ignored`, `rejected`, `truncated` (longer than a spectrogram
        holds), `padded`, `silent`, `resampled`, `folded`, and each split.
    hours : float
        Of sound in the files that were used.
    rejected : tuple of Rejection
    store : Format
    """

    counts: Counter[str]
    hours: float
    rejected: tuple[Rejection, ...]
    store: Format


MapUnits = Callable[[Callable[[Unit], UnitResult], list[Unit]], Iterable[UnitResult]]


@dataclass
class _Collected:
    """Results of units so far, as the driver keeps them: no audio, and about 200 bytes per clip."""

    results: dict[str, UnitResult] = field(default_factory=dict)

    def add(self, result: UnitResult) -> None:
        self.results[result.prefix] = result

    def in_order(self) -> list[UnitResult]:
        return [self.results[prefix] for prefix in sorted(self.results)]


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
    ) -> None:
        self.loader = loader
        self.padder = padder
        self.extractor = extractor
        self.normaliser = normaliser
        self.saver = saver
        self.splitter = splitter or Splitter()
        self.max_rejected_share = max_rejected_share

    @property
    def shape(self) -> tuple[int, int]:
        """(n_bins, n_frames) of a row."""
        return self.extractor.n_bins, self.extractor.n_frames(self.loader.n_samples)

    @property
    def row_bytes(self) -> int:
        """Size of a row on disk."""
        return 4 * self.shape[0] * self.shape[1]

    @property
    def parameters(self) -> dict[str, Any]:
        """Every parameter that shapes the numbers."""
        return {
            "sample_rate": self.loader.sample_rate,
            "duration_s": self.loader.duration_s,
            "mono": self.loader.mono,
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

    def process_corpus(self, corpus: Corpus, map_units: MapUnits = map) -> Report:
        """Do what `preprocess` does, for clips that are already listed."""
        # Rejects a contradiction in the split patterns before any work is done.
        self.splitter.describe([clip.clip_id for clip in corpus.clips])
        self.saver.prepare()
        collected = _Collected()
        for result in map_units(self.process_unit, self.plan(corpus.clips)):
            collected.add(result)
        results = collected.in_order()
        rejected = tuple(
            sorted(
                [*corpus.rejected, *(rejection for result in results for rejection in result.rejected)],
                key=lambda rejection: rejection.clip_id,
            )
        )
        self._judge(len(corpus.clips) + len(corpus.rejected), rejected)
        table = self._assemble([result for result in results if result.shard])
        shards = [result.shard for result in results if result.shard]
        store = self.saver.finish(shards, table, self.shape, self.parameters, numeric_versions())
        counts: Counter[str] = sum((result.counts for result in results), Counter())
        counts |= Counter(clips=counts["clips"], rows=len(table), ignored=corpus.n_ignored, rejected=len(rejected))
        counts += Counter(table["split"].to_pylist())
        return Report(counts, sum(result.seconds for result in results) / 3600, rejected, store)

    def plan(self, clips: Iterable[Clip]) -> list[Unit]:
        """Deal clips out to units by the hash of their ids, about 32 MiB of rows each."""
        clips = list(clips)
        n_bits = max(0, (-(-len(clips) * self.row_bytes // SHARD_BYTES) - 1).bit_length())
        members: dict[int, list[Clip]] = {}
        for clip in clips:
            members.setdefault(hash_prefix(clip.clip_id, n_bits), []).append(clip)
        width = max(1, -(-n_bits // 4))
        return [Unit(f"{prefix:0{width}x}", tuple(members[prefix])) for prefix in sorted(members)]

    def process_unit(self, unit: Unit) -> UnitResult:
        """Make one shard. Pure but for the file it writes: any worker gives the same bytes."""
        blocks: list[NDArray[np.float32]] = []
        columns: dict[str, list[Any]] = {name: [] for name in _ROW_SCHEMA.names}
        rejected: list[Rejection] = []
        counts: Counter[str] = Counter()
        seconds = 0.0
        for start in range(0, len(unit.clips), _BLOCK_CLIPS):
            signals: list[NDArray[np.float32]] = []
            clips = unit.clips[start : start + _BLOCK_CLIPS]
            for clip, recording in zip(clips, self.loader.load_many(clip.path for clip in clips), strict=True):
                if isinstance(recording, AudioError):
                    rejected.append(Rejection(clip.clip_id, recording.reason, recording.detail))
                    continue
                signals.append(self.padder.pad(recording.y, self.loader.n_samples))
                self._describe(clip, recording, columns)
                counts.update(self._notice(recording))
                seconds += recording.source_samples / recording.source_rate
            if signals:
                x, min_db, max_db = self.normaliser.normalise(self.extractor.extract(np.concatenate(signals)))
                blocks.append(x)
                columns["min_db"].extend(min_db.tolist())
                columns["max_db"].extend(max_db.tolist())
        columns["row"] = list(range(len(columns["clip_id"])))
        shard = self.saver.save_shard(unit.prefix, blocks) if blocks else None
        rows = pa.table(columns, schema=_ROW_SCHEMA)
        return UnitResult(unit.prefix, len(unit.clips), shard, rows, tuple(rejected), counts, seconds)

    def _describe(self, clip: Clip, recording: Recording, columns: dict[str, list[Any]]) -> None:
        """Append what is known of a recording's rows, one per channel."""
        n_rows = len(recording.y)
        for name, value in (
            ("clip_id", clip.clip_id),
            ("segment", 0),
            ("start_s", 0.0),
            ("sha256", recording.sha256),
            ("source_rate", recording.source_rate),
            ("source_channels", recording.source_channels),
            ("source_samples", recording.source_samples),
        ):
            columns[name].extend([value] * n_rows)
        columns["channel"].extend(range(n_rows))

    def _notice(self, recording: Recording) -> Iterator[str]:
        """Yield what a person would want to know was done to a clip."""
        yield "clips"
        if recording.source_samples > count_samples(self.loader.duration_s, recording.source_rate):
            yield "truncated"
        if recording.y.shape[-1] < self.loader.n_samples:
            yield "padded"
        if not recording.y.any():
            yield "silent"
        if recording.source_rate != self.loader.sample_rate:
            yield "resampled"
        if len(recording.y) < recording.source_channels:
            yield "folded"

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

    def _assemble(self, results: list[UnitResult]) -> pa.Table:
        """Put the rows of all units together, with shard, label, group and split."""
        table = pa.concat_tables([result.rows for result in results])
        clip_ids = table["clip_id"].to_pylist()
        described = dict(zip(clip_ids, self.splitter.describe(clip_ids), strict=True))
        late = {
            "shard": np.repeat(np.arange(len(results), dtype=np.int32), [len(result.rows) for result in results]),
            "label": [described[clip_id].label for clip_id in clip_ids],
            "group": [described[clip_id].group for clip_id in clip_ids],
            "split": [described[clip_id].split for clip_id in clip_ids],
        }
        for name, values in late.items():
            table = table.append_column(TABLE_SCHEMA.field(name), pa.array(values, TABLE_SCHEMA.field(name).type))
        return table.select(TABLE_SCHEMA.names)


class RejectedError(CorpusError):
    """Too much of a corpus cannot be used; `rejected` says what and why."""

    def __init__(self, message: str, rejected: tuple[Rejection, ...]) -> None:
        super().__init__(message)
        self.rejected = rejected


def numeric_versions() -> dict[str, Any]:
    """Return what else shapes the last bits: libraries, and the processor's features that NumPy dispatches on."""
    libraries = ("numpy", "soxr", "soundfile")
    features = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", [])
    return {
        **{name: importlib.metadata.version(name) for name in libraries},
        "libsndfile": sf.__libsndfile_version__,
        "machine": platform.machine(),
        "simd": sorted(features),
    }
