"""Where the silence before and after a sound ends, and how loud the sound is, measured while a recording streams.

Frames and threshold are those of `librosa.effects.trim`, its frames as long at every rate as they are at 22.05 kHz.
"""

import math
from collections.abc import Callable
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.containers import Progress
from pipeline.decoder import ForwardReader, decoder
from pipeline.errors import AudioError

# Why a recording is left out with which nothing is wrong.
QUIET = "quiet"
# How many values are decoded at a time.
_MEASURED_VALUES = 1 << 20
# From one frame to the next there are 512 samples at 22.05 kHz, 23 ms; a frame is four of these steps long.
_HOP_S = 512 / 22050
_STEPS = 4
# The mean power that nothing counts as quieter than, librosa's `amin`: what is silent throughout is not trimmed.
_LEAST_POWER = 1e-10


class Heard(NamedTuple):
    """Samples of a recording from `start` to `stop`, of which `peak` is the highest magnitude."""

    start: int
    stop: int
    peak: float


class LevelMeter:
    """Measures a recording block by block, and remembers 12 bytes or more for every 23 ms of it.

    Parameters
    ----------
    rate : int
        Of the recording, in Hz.

    Attributes
    ----------
    hop_length : int
        Samples from one frame to the next.
    """

    def __init__(self, rate: int) -> None:
        self.hop_length = max(1, math.floor(rate * _HOP_S + 0.5))
        self._n_samples = 0
        self._energies: list[NDArray[np.float64]] = []
        self._peaks: list[NDArray[np.float32]] = []

    def add(self, y: NDArray[np.float32]) -> None:
        """Listen to the next samples.

        Parameters
        ----------
        y : ndarray of float32, shape (n_channels, n_samples)
            A multiple of `hop_length` samples, but for the last block.
        """
        n_channels, n_samples = y.shape
        assert self._n_samples % self.hop_length == 0
        steps = np.zeros((n_channels, -(-n_samples // self.hop_length), self.hop_length), dtype=np.float32)
        steps.reshape(n_channels, -1)[:, :n_samples] = y
        # In double, in which squares of 16-bit numbers are exact, so that no sum depends on how they are summed.
        self._energies.append(np.square(steps, dtype=np.float64).sum(axis=-1))
        self._peaks.append(np.abs(steps).max(axis=(0, -1)))
        self._n_samples += n_samples

    def heard(self, trim_db: float | None) -> Heard:
        """Return what is left without the frames at either end that are `trim_db` or more below the loudest one.

        Parameters
        ----------
        trim_db : float, optional
            By default nothing is trimmed.
        """
        start, stop = (0, self._n_samples) if trim_db is None else self._sounding(trim_db)
        peaks = np.concatenate(self._peaks)[start // self.hop_length : -(-stop // self.hop_length)]
        return Heard(start, stop, float(peaks.max()))

    def _sounding(self, trim_db: float) -> tuple[int, int]:
        # The frame at sample k * hop_length has two steps before it and two behind it, zeros where there are none.
        energies = np.pad(np.concatenate(self._energies, axis=1), [(0, 0), (_STEPS // 2, _STEPS // 2)])
        n_frames = 1 + self._n_samples // self.hop_length
        frames = sum(energies[:, step : step + n_frames] for step in range(_STEPS))
        power = np.maximum(np.max(frames, axis=0) / (_STEPS * self.hop_length), _LEAST_POWER)
        sounding = np.flatnonzero(power > power.max() * 10.0 ** (-trim_db / 10.0))
        return int(sounding[0]) * self.hop_length, min(self._n_samples, (int(sounding[-1]) + 1) * self.hop_length)


def listen(
    raw: BinaryIO,
    n_total: int,
    fold: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    trim_db: float | None,
    progress: Progress,
) -> Heard:
    """Return what of an open file is heard, from all of it, of which little is in memory at a time.

    Parameters
    ----------
    raw : file
    n_total : int
        Samples that it has.
    fold : callable
        Turns samples (n_samples, n_channels) into the channels (n_channels, n_samples) that count.
    trim_db : float, optional
        As for `LevelMeter.heard`.
    progress : callable
        Called now and then.

    Raises
    ------
    AudioError
        It holds less than that, or samples that are not finite.
    """
    with decoder(raw) as file:
        meter, reader = LevelMeter(file.samplerate), ForwardReader(file)
        n_at_once = max(1, _MEASURED_VALUES // (meter.hop_length * file.channels)) * meter.hop_length
        for start in range(0, n_total, n_at_once):
            meter.add(fold(reader.read(start, min(n_total, start + n_at_once))))
            progress()
    return meter.heard(trim_db)


def check_level(peak: float, min_level_db: float | None) -> None:
    """Refuse a recording whose highest sample is below a level in dB of full scale.

    Raises
    ------
    AudioError
        Its reason is `QUIET`.
    """
    if min_level_db is None or peak >= 10.0 ** (min_level_db / 20.0):
        return
    found = f"highest sample is {20.0 * math.log10(peak):.1f} dB of full scale" if peak else "samples are all zero"
    raise AudioError(QUIET, f"its {found}, and min_level_db={min_level_db:g}")
