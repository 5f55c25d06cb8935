"""Loader: the first `duration_s` of a recording, at one rate, as float32. Knows nothing of spectrograms."""

import hashlib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

from pipeline.errors import AudioError

# A chunk whose header promises more bytes than the file has, in libsndfile's own log.
_CUT_CHUNK = re.compile(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
# Encoders that write to a pipe do not know the length, and leave a number near the top of the field.
_LENGTH_UNKNOWN = 0x7F00_0000


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
        # libsndfile takes names as bytes; soundfile cannot encode a str whose bytes were not UTF-8.
        name = os.fsencode(path)
        try:
            sha256 = hashlib.sha256(Path(os.fsdecode(name)).read_bytes()).hexdigest()
            with sf.SoundFile(name) as file:
                rate, channels, frames = file.samplerate, file.channels, file.frames
                wanted = min(count_samples(self.duration_s, rate), frames)
                samples = file.read(wanted, dtype="float32", always_2d=True)
                log = file.extra_info if len(samples) == frames else ""
        except OSError as error:
            raise AudioError("unreadable", error.strerror or str(error)) from error
        except sf.LibsndfileError as error:
            raise AudioError("not audio", str(error.error_string).strip()) from error
        if len(samples) < wanted:
            raise AudioError("truncated", f"header states {frames} samples, {len(samples)} could be decoded")
        _check_chunks(log)
        if not len(samples):
            raise AudioError("empty", "file holds no samples")
        if not np.isfinite(samples).all():
            raise AudioError("not finite", f"{np.count_nonzero(~np.isfinite(samples))} samples are NaN or infinite")
        return Recording(self._convert(samples, rate), rate, channels, frames, sha256)

    def _convert(self, samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
        """Fold and resample (n_samples, n_channels) into (n_channels, n_samples)."""
        if self.mono and samples.shape[1] > 1:
            samples = samples.mean(axis=1, keepdims=True)
        if rate != self.sample_rate:
            samples = soxr.resample(samples, rate, self.sample_rate, quality="HQ")
        return np.ascontiguousarray(samples[: self.n_samples].T)


def _check_chunks(log: str) -> None:
    """Refuse a file that was cut off: its header promises more bytes than there are."""
    match = _CUT_CHUNK.search(log)
    if match is None:
        return
    promised, found = int(match[1]), int(match[2])
    if found < promised < _LENGTH_UNKNOWN:
        raise AudioError("truncated", f"header promises {promised} bytes of samples, the file holds {found}")
