"""What a person wants to know of a corpus, counted from a store's table."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import columns
from pipeline.loader import Loader, count_samples
from pipeline.resampler import count_resampled


def first_lines(table: pa.Table) -> pa.Table:
    """Return the first line of each clip."""
    is_first = _is_first(table)
    # Where each clip has one line, no copy is made, of which there would be two for a moment.
    return table if is_first.all() else table.take(columns.numbers(np.flatnonzero(is_first), pa.int64()))


def durations_s(clips: pa.Table) -> NDArray[np.float64]:
    """Return the length of each clip's file in seconds, from a line of each."""
    seconds: NDArray[np.float64] = columns.values(clips["source_samples"]) / columns.values(clips["source_rate"])
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
    names = "source_rate source_channels source_start source_stop source_samples".split()
    rate, channels, start, stop, n_samples = (columns.values(clips[name]) for name in names)
    n_cut, n_padded = _count_lengths(rate, stop - start, loader, n_overlap)
    # The lines of a clip follow each other.
    first = np.flatnonzero(_is_first(table))
    loud, levelled = (
        int(np.logical_or.reduceat(condition, first).sum())
        for condition in (columns.values(table["peak"]) > 0.0, columns.values(table["gain_db"]) != 0.0)
    )
    counts = Counter(
        clips=len(clips),
        rows=len(table),
        segments=int((columns.values(table["channel"]) == 0).sum()),
        cut=n_cut,
        trimmed=int((stop - start < n_samples).sum()),
        padded=n_padded,
        silent=len(clips) - loud,
        resampled=int((rate != loader.sample_rate).sum()),
        folded=int((channels > 1).sum()) if loader.mono else 0,
        levelled=levelled,
        # 64 bits of SHA-256 tell as many recordings apart as there will ever be.
        duplicates=len(clips) - len(np.unique(columns.first_bits(columns.digests(clips["sha256"])))),
    )
    splits = pc.value_counts(clips["split"])
    return counts + Counter(dict(zip(*(splits.field(place).to_pylist() for place in (0, 1)), strict=True)))


def _is_first(table: pa.Table) -> NDArray[np.bool_]:
    """Return which lines are the first of their clips."""
    found: NDArray[np.bool_] = (columns.values(table["channel"]) == 0) & (columns.values(table["segment"]) == 0)
    return found


def _count_lengths(
    rates: NDArray[np.int32], heard: NDArray[np.int64], loader: Loader, n_overlap: int | None
) -> tuple[int, int]:
    """Return how many clips are cut, and how many have a padded row."""
    # A corpus has few different pairs of rate and length, or few clips.
    order = np.lexsort((heard, rates))
    rates, heard = rates[order], heard[order]
    starts = np.flatnonzero(np.diff(rates, prepend=-1) | np.diff(heard, prepend=-1))
    pairs = zip(rates[starts].tolist(), heard[starts].tolist(), strict=True)
    counted = [_count_pair(rate, n, loader, n_overlap) for rate, n in pairs]
    n_cut, n_padded = np.asarray(counted, dtype=bool).T @ np.diff(starts, append=len(order))
    return int(n_cut), int(n_padded)


def _count_pair(rate: int, n_samples: int, loader: Loader, n_overlap: int | None) -> tuple[bool, bool]:
    """Return whether a recording of which that many samples are heard is cut, and whether its last row is padded."""
    n_resampled = count_resampled(n_samples, rate, loader.sample_rate)
    if n_overlap is None:
        return n_samples > count_samples(loader.duration_s, rate), n_resampled < loader.n_samples
    beyond = n_resampled - loader.n_samples
    return False, beyond < 0 or beyond % (loader.n_samples - n_overlap) > 0
