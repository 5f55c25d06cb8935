"""Loader: the first `duration_s` of a recording, at one rate, as float32. Knows nothing of spectrograms."""

import hashlib
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NoReturn

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

from pipeline.errors import AudioError

# A chunk whose header promises more bytes than the file has, in libsndfile's own log.
_CUT_CHUNK = re.compile(r"^\s*(?:data|SSND|BODY|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
# Encoders that write to a pipe do not know the length, and leave a number near the top of the field.
_LENGTH_UNKNOWN = 0x7F00_0000
# What libsndfile then says of a FLAC file, in which it cannot seek.
_FRAMES_UNKNOWN = 2**62
# Integers of 32 bits, written as floats without scaling, are below; far above, squares overflow float32.
_LOUDEST = 2.0**32
# Recordings that go through soxr in one call; with more, what it keeps for each outgrows the cache.
_STACKED = 16


def count_samples(duration_s: float, sample_rate: int) -> int:
    """Return the number of samples nearest to a duration.

    `int(duration_s * sample_rate)` loses a sample where the product falls just below a whole number.

    Parameters
    ----------
    duration_s : float
        In seconds.
    sample_rate : int
        In Hz.
    """
    return math.floor(duration_s * sample_rate + 0.5)


@dataclass(frozen=True, slots=True)
class Recording:
    """The start of a recording, and what its file holds.

    Attributes
    ----------
    y : ndarray of float32, shape (n_channels, n_samples)
        One channel after folding to mono. At most the loader's duration; shorter when the recording is.
    source_rate : int
        Rate of the file in Hz.
    source_channels, source_samples : int
        Channels of the file, and samples per channel as its header states them.
    sha256 : str
        Digest of the file's bytes.
    """

    y: NDArray[np.float32]
    source_rate: int
    source_channels: int
    source_samples: int
    sha256: str


class Loader:
    """Loads the first `duration_s` of a file, as `librosa.load` does, and says what is wrong with it.

    Parameters
    ----------
    sample_rate : int
        Rate of what is returned, in Hz. Other rates are resampled by soxr at its high quality.
    duration_s : float
        Length of what is read, in seconds.
    mono : bool
        Whether channels are folded into their mean.
    """

    def __init__(self, sample_rate: int = 22050, duration_s: float = 0.74, mono: bool = True) -> None:
        self.sample_rate = sample_rate
        self.duration_s = float(duration_s)
        self.mono = mono

    @property
    def n_samples(self) -> int:
        """Samples of a full clip."""
        return count_samples(self.duration_s, self.sample_rate)

    def load(self, path: str | os.PathLike[str]) -> Recording:
        """Load the start of a recording.

        Parameters
        ----------
        path : path-like
            A file in any format that libsndfile reads.

        Returns
        -------
        Recording
            With `y` of shape (n_channels, n_samples), `n_samples` at most `Loader.n_samples`.

        Raises
        ------
        AudioError
            The file cannot be read, is no audio, is truncated, or holds no samples or samples that are not finite.
        """
        return self._resample([self._read(path)])[0]

    def load_many(self, paths: Iterable[str | os.PathLike[str]]) -> list[Recording | AudioError]:
        """Load the starts of several recordings, each as `load` does, in less time.

        Parameters
        ----------
        paths : iterable of path-like
            Files in any formats that libsndfile reads.

        Returns
        -------
        list of Recording or AudioError
            For each path what `load` returns, or what it raises.
        """
        loaded = [self._try_read(path) for path in paths]
        resampled = iter(self._resample([each for each in loaded if isinstance(each, Recording)]))
        return [next(resampled) if isinstance(each, Recording) else each for each in loaded]

    def _try_read(self, path: str | os.PathLike[str]) -> Recording | AudioError:
        try:
            return self._read(path)
        except AudioError as error:
            return error

    def _read(self, path: str | os.PathLike[str]) -> Recording:
        """Return the start of a recording at its own rate."""
        try:
            # Opened once for both, so that the digest is of the bytes that are decoded; by no Path, which costs more.
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123
                sha256 = hashlib.sha256(file.read()).hexdigest()
                file.seek(0)
                samples, rate, frames = self._decode(file.fileno())
        except OSError as error:
            raise AudioError("unreadable", error.strerror or str(error)) from error
        except sf.LibsndfileError as error:
            raise AudioError("not audio", str(error.error_string).strip()) from error
        if not len(samples):
            raise AudioError("empty", "file holds no samples")
        if not (samples.min() >= -_LOUDEST and samples.max() <= _LOUDEST):  # NaN fails every comparison
            _refuse(samples)
        if not _count_resampled(len(samples), rate, self.sample_rate):
            raise AudioError("empty", f"{len(samples)} samples at {rate} Hz are none at {self.sample_rate} Hz")
        # Copied before the mean, which is slow over numbers that lie side by side.
        y = np.ascontiguousarray(samples.T)
        if self.mono and len(y) > 1:
            y = y.mean(axis=0, keepdims=True)
        return Recording(y, rate, samples.shape[1], frames, sha256)

    def _decode(self, descriptor: int) -> tuple[NDArray[np.float32], int, int]:
        """Return the first samples of an open file (n_samples, n_channels), its rate, and how many it has in all."""
        with sf.SoundFile(descriptor, closefd=False) as file:
            rate, frames = file.samplerate, file.frames
            if frames >= _FRAMES_UNKNOWN:
                raise AudioError("unknown length", "the header does not state how many samples there are")
            samples = np.empty((min(count_samples(self.duration_s, rate), frames), file.channels), dtype=np.float32)
            n_decoded = file.buffer_read_into(samples, dtype="float32")
            log = file.extra_info if n_decoded == frames else ""
        if n_decoded < len(samples):
            raise AudioError("truncated", f"header states {frames} samples, {n_decoded} could be decoded")
        _check_chunks(log)
        return samples, rate, frames

    def _resample(self, recordings: list[Recording]) -> list[Recording]:
        """Bring recordings to the loader's rate, up to `_STACKED` of one rate and of like lengths at a time."""
        y = [recording.y for recording in recordings]
        rates = [recording.source_rate for recording in recordings]
        order = [place for place, rate in enumerate(rates) if rate != self.sample_rate]
        order.sort(key=lambda place: (rates[place], y[place].shape[1]))
        for (rate, _), stack in groupby(enumerate(order), key=lambda item: (rates[item[1]], item[0] // _STACKED)):
            places = [place for _, place in stack]
            resampled = _resample_stacked([y[place] for place in places], rate, self.sample_rate)
            for place, each in zip(places, resampled, strict=True):
                y[place] = each
        return [replace(recording, y=each[:, : self.n_samples]) for recording, each in zip(recordings, y, strict=True)]


def _resample_stacked(signals: list[NDArray[np.float32]], rate: int, sample_rate: int) -> list[NDArray[np.float32]]:
    """Resample signals (n_channels, n_samples) in one call of soxr, each to the bytes that it gives alone.

    soxr designs its filters anew in each call, which takes longer than the samples of a short clip. It filters the
    channels one by one, and after a signal's end it goes on as if there were zeros.
    """
    stacked = np.zeros((sum(map(len, signals)), max(y.shape[1] for y in signals)), dtype=np.float32)
    ends = np.cumsum([len(y) for y in signals])
    for rows, y in zip(np.split(stacked, ends), signals, strict=False):
        rows[:, : y.shape[1]] = y
    resampled = soxr.resample(stacked.T, rate, sample_rate, quality="HQ").T
    return [
        rows[:, : _count_resampled(y.shape[1], rate, sample_rate)]
        for rows, y in zip(np.split(resampled, ends), signals, strict=False)
    ]


def _count_resampled(n_samples: int, rate: int, sample_rate: int) -> int:
    """Return how many samples soxr makes of `n_samples`: the nearest number, rounded where soxr rounds."""
    return math.floor(n_samples / (rate / sample_rate) + 0.5)


def _refuse(samples: NDArray[np.float32]) -> NoReturn:
    """Say what is wrong with values of which a spectrogram would hold infinities."""
    n_not_finite = np.count_nonzero(~np.isfinite(samples))
    if n_not_finite:
        raise AudioError("not finite", f"{n_not_finite} samples are NaN or infinite")
    raise AudioError("too loud", f"a sample is {np.abs(samples).max():.3g}, and full scale is 1")


def _check_chunks(log: str) -> None:
    """Refuse a file that was cut off: its header promises more bytes than there are."""
    match = _CUT_CHUNK.search(log)
    if match is None:
        return
    promised, found = int(match[1]), int(match[2])
    if found < promised < _LENGTH_UNKNOWN:
        raise AudioError("truncated", f"header promises {promised} bytes of samples, the file holds {found}")
