"""What is known of a recording: before its segments are made, and with its start."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.containers import Entry
from pipeline.decoder import Library


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
    source_start, source_stop : int
        Samples of the file between which it is heard: all, but for silence that was trimmed.
    sha256 : str
        Digest of the file's bytes.
    decoder : {'libsndfile', 'ffmpeg'}
        What decoded it.
    """

    y: NDArray[np.float32]
    source_rate: int
    source_channels: int
    source_samples: int
    source_start: int
    source_stop: int
    sha256: str
    decoder: Library


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a recording before its segments are made.

    Attributes
    ----------
    sha256 : str
        Digest of the file's bytes.
    source_rate, source_channels, source_samples, source_start, source_stop, decoder
        As in `Recording`.
    stamp : tuple of int
        Size, time of change in ns, and number of the file when it was hashed: another one is another file.
    entries : tuple of Entry, optional
        Where a container can be entered; None where nobody has looked.
    """

    sha256: str
    source_rate: int
    source_channels: int
    source_samples: int
    source_start: int
    source_stop: int
    decoder: Library
    stamp: tuple[int, int, int]
    entries: tuple[Entry, ...] | None = None
