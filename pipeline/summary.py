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
    """Return how many clips were cut, padded, silent, changed in one way or another, or copies, and in which split.

    Parameters
    ----------
    clips, table : pyarrow.Table
        A line of each clip, and the lines of all rows.
    loader : Loader
    n_overlap : int, optional
        Samples that segments share, where all of them were wanted.
    """
    rate, channels = (np.asarray(clips[name]) for name in ("source_rate", "source_channels"))
    heard = pc.subtract(clips["source_stop"], clips["source_start"])
    n_truncated, n_padded = _count_lengths(clips["source_rate"], heard, loader, n_overlap)
    clip_ids = table["clip_id"]
    loud, levelled = (
        pc.count_distinct(clip_ids.filter(condition)).as_py()
        for condition in (pc.greater(table["peak"], 0.0), pc.not_equal(table["gain_db"], 0.0))
    )
    counts = Counter(
        clips=len(clips),
        rows=len(table),
        segments=pc.sum(pc.equal(table["channel"], 0)).as_py(),
        truncated=n_truncated,
        trimmed=pc.sum(pc.less(heard, clips["source_samples"])).as_py(),
        padded=n_padded,
        silent=len(clips) - loud,
        resampled=int((rate != loader.sample_rate).sum()),
        folded=int((channels > 1).sum()) if loader.mono else 0,
        levelled=levelled,
        duplicates=len(clips) - pc.count_distinct(clips["sha256"]).as_py(),
    )
    splits = pc.value_counts(clips["split"])
    return counts + Counter(dict(zip(*(splits.field(place).to_pylist() for place in (0, 1)), strict=True)))


def _count_lengths(
    rates: pa.ChunkedArray, heard: pa.ChunkedArray, loader: Loader, n_overlap: int | None
) -> tuple[int, int]:
    """Return how many clips are cut, and how many have a padded row."""
    # A corpus has few different pairs of rate and length, or few clips.
    pairs = pa.table({"rate": rates, "heard": heard}).group_by(["rate", "heard"]).aggregate([([], "count_all")])
    found = zip(pairs["rate"].to_pylist(), pairs["heard"].to_pylist(), strict=True)
    counted = [_count_pair(rate, n, loader, n_overlap) for rate, n in found]
    n_truncated, n_padded = np.asarray(counted, dtype=bool).T @ np.asarray(pairs["count_all"])
    return int(n_truncated), int(n_padded)


def _count_pair(rate: int, n_samples: int, loader: Loader, n_overlap: int | None) -> tuple[bool, bool]:
    """Return whether a recording of which that many samples are heard is cut, and whether its last row is padded."""
    n_resampled = count_resampled(n_samples, rate, loader.sample_rate)
    if n_overlap is None:
        return n_samples > count_samples(loader.duration_s, rate), n_resampled < loader.n_samples
    beyond = n_resampled - loader.n_samples
    return False, beyond < 0 or beyond % (loader.n_samples - n_overlap) > 0
