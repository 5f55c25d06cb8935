"""What a person wants to know of a corpus, counted from a store's table."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.loader import Loader, count_samples
from pipeline.resampler import count_resampled


def first_lines(table: pa.Table) -> pa.Table:
    """Return the first line of each clip."""
    is_first = pc.and_(pc.equal(table["channel"], 0), pc.equal(table["segment"], 0))
    # Where each clip has one line, no copy is made, of which there would be two for a moment.
    return table if pc.all(is_first).as_py() else table.filter(is_first)


def durations_s(clips: pa.Table) -> NDArray[np.float64]:
    """Return the length of each clip's file in seconds, from a line of each."""
    seconds: NDArray[np.float64] = np.asarray(clips["source_samples"]) / np.asarray(clips["source_rate"])
    return seconds


def count_notable(clips: pa.Table, table: pa.Table, loader: Loader, n_overlap: int | None) -> Counter[str]:
    """Return how many clips were longer, shorter, silent, resampled, folded or copies of others, and in which split.

    Parameters
    ----------
    clips, table : pyarrow.Table
        A line of each clip, and the lines of all rows.
    loader : Loader
    n_overlap : int, optional
        Samples that segments share, where all of them were wanted.
    """
    rate, channels = (np.asarray(clips[name]) for name in ("source_rate", "source_channels"))
    n_truncated, n_padded = _count_lengths(clips, loader, n_overlap)
    loud = pc.count_distinct(table["clip_id"].filter(pc.greater(table["peak"], 0.0))).as_py()
    counts = Counter(
        clips=len(clips),
        rows=len(table),
        segments=pc.sum(pc.equal(table["channel"], 0)).as_py(),
        truncated=n_truncated,
        padded=n_padded,
        silent=len(clips) - loud,
        resampled=int((rate != loader.sample_rate).sum()),
        folded=int((channels > 1).sum()) if loader.mono else 0,
        duplicates=len(clips) - pc.count_distinct(clips["sha256"]).as_py(),
    )
    splits = pc.value_counts(clips["split"])
    return counts + Counter(dict(zip(*(splits.field(place).to_pylist() for place in (0, 1)), strict=True)))


def _count_lengths(clips: pa.Table, loader: Loader, n_overlap: int | None) -> tuple[int, int]:
    """Return how many clips are cut, and how many have a padded row."""
    names = ["source_rate", "source_samples"]
    # A corpus has few different pairs of rate and length, or few clips.
    pairs = clips.select(names).group_by(names).aggregate([([], "count_all")])
    rates, lengths = (pairs[name].to_pylist() for name in names)
    counted = [_count_pair(rate, n, loader, n_overlap) for rate, n in zip(rates, lengths, strict=True)]
    n_truncated, n_padded = np.asarray(counted, dtype=bool).T @ np.asarray(pairs["count_all"])
    return int(n_truncated), int(n_padded)


def _count_pair(rate: int, n_samples: int, loader: Loader, n_overlap: int | None) -> tuple[bool, bool]:
    """Return whether a recording of a rate and length is cut, and whether its last row is padded."""
    n_resampled = count_resampled(n_samples, rate, loader.sample_rate)
    if n_overlap is None:
        return n_samples > count_samples(loader.duration_s, rate), n_resampled < loader.n_samples
    beyond = n_resampled - loader.n_samples
    return False, beyond < 0 or beyond % (loader.n_samples - n_overlap) > 0
