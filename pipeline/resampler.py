"""Resampling by soxr: whole recordings, and stretches of long ones, each to the bytes that follow from it alone."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import soxr
from numpy.typing import NDArray

Quality = Literal["LQ", "MQ", "HQ", "VHQ"]

# Recordings that go through soxr in one call; with more, what it keeps for each outgrows the cache.
STACKED = 16
# Samples before and after a stretch of segments that its resampling hears, at the lower of both rates. With a quarter
# of it, what the filter has not heard is below the rounding of float32.
_CONTEXT = 1024
# How many segments are resampled as one stretch, and how many values of the source that may be: with fewer segments
# more samples are heard a second time, more of them outgrow the cache.
_STRETCH_SEGMENTS = 32
_STRETCH_VALUES = 1 << 20


def count_resampled(n_samples: int, rate: int, sample_rate: int) -> int:
    """Return how many samples soxr makes of `n_samples`: the nearest number, rounded where soxr rounds."""
    return n_samples if rate == sample_rate else math.floor(n_samples / (rate / sample_rate) + 0.5)


def resample_stacked(
    signals: list[NDArray[np.float32]], rate: int, sample_rate: int, quality: Quality = "HQ", n_spare: int = 0
) -> list[NDArray[np.float32]]:
    """Resample signals (n_channels, n_samples) in one call of soxr, each to the bytes that it gives alone.

    soxr designs its filters anew in each call, which takes longer than the samples of a short clip. It filters the
    channels one by one, and after a signal's end it goes on as if there were zeros.

    Parameters
    ----------
    signals : list of ndarray of float32, shape (n_channels, n_samples)
    rate, sample_rate : int
        What they have and what they get, in Hz.
    quality : {'LQ', 'MQ', 'HQ', 'VHQ'}
        As soxr has it.
    n_spare : int
        Zeros after the longest of them, of which what comes out is kept.
    """
    stacked = np.zeros((sum(map(len, signals)), max(y.shape[1] for y in signals) + n_spare), dtype=np.float32)
    ends = np.cumsum([len(y) for y in signals])
    for rows, y in zip(np.split(stacked, ends), signals, strict=False):
        rows[:, : y.shape[1]] = y
    resampled = soxr.resample(stacked.T, rate, sample_rate, quality=quality).T
    return [
        rows[:, : count_resampled(y.shape[1] + n_spare, rate, sample_rate)]
        for rows, y in zip(np.split(resampled, ends), signals, strict=False)
    ]


@dataclass(frozen=True, slots=True)
class Window:
    """What of a recording one segment, or a stretch of them, is made of.

    Attributes
    ----------
    start, stop : int
        Samples of the source.
    skip, n_samples : int
        Of what these are resampled to: how many samples come before the stretch, and how many it has.
    """

    start: int
    stop: int
    skip: int
    n_samples: int


def segment_window(source_samples: int, rate: int, sample_rate: int, start: int, n_samples: int) -> Window:
    """Return what of a source the samples from `start` to `start + n_samples` at another rate are made of.

    It begins where a sample of the source falls on one of the result, so that what is resampled alone is, but for the
    rounding of float32, what resampling the whole recording gives.
    """
    stop = min(start + n_samples, count_resampled(source_samples, rate, sample_rate))
    if rate == sample_rate:
        return Window(start, stop, 0, stop - start)
    divisor = math.gcd(rate, sample_rate)
    source_period, period = rate // divisor, sample_rate // divisor
    n_context = math.ceil(_CONTEXT * max(1.0, rate / sample_rate))
    n_periods = max(0, (start * rate // sample_rate - n_context) // source_period)
    return Window(
        n_periods * source_period,
        min(source_samples, -(-stop * rate // sample_rate) + n_context),
        start - n_periods * period,
        stop - start,
    )


def stretches(segments: range, n_values: int, is_resampled: bool) -> Iterator[range]:
    """Yield stretches of segments that are decoded together, and hold all that are asked for.

    One that is resampled begins and ends where it does whatever is asked for, since soxr's last bits depend on it.

    Parameters
    ----------
    segments : range
        Which are asked for.
    n_values : int
        Of the source that one segment is made of.
    is_resampled : bool
    """
    n_at_once = max(1, min(_STRETCH_SEGMENTS, _STRETCH_VALUES // n_values))
    first = segments.start // n_at_once * n_at_once if is_resampled else segments.start
    for start in range(first, segments.stop, n_at_once):
        yield range(start, start + n_at_once if is_resampled else min(start + n_at_once, segments.stop))
