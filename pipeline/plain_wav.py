"""Plain WAV files that are whole in memory, as samples without a decoder, which takes longer to open than to read them.

Only files in which nothing can be misunderstood; libsndfile reads all others, and these to the same samples.
"""

import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_PCM, _FLOAT = 1, 3
# For each kind of sample and its bits the type, and what full scale is.
_SAMPLES: dict[tuple[int, int], tuple[np.dtype[Any], float]] = {
    (_PCM, 16): (np.dtype("<i2"), 2.0**15),
    (_PCM, 32): (np.dtype("<i4"), 2.0**31),
    (_FLOAT, 32): (np.dtype("<f4"), 1.0),
}
_RIFF = struct.Struct("<4sI4s")
_CHUNK = struct.Struct("<4sI")
_FORMAT = struct.Struct("<HHIIHH")
# Chunks that say nothing of the samples.
_SKIPPED = frozenset({b"LIST", b"fact", b"bext", b"JUNK", b"PAD ", b"PEAK"})


class PlainWav(NamedTuple):
    """Samples of a file in its own type, (n_samples, n_channels); its rate in Hz, and what full scale is."""

    samples: NDArray[Any]
    rate: int
    full_scale: float

    @property
    def is_integer(self) -> bool:
        """Whether no sample can be beyond full scale, or be no number."""
        return self.full_scale != 1

    def start(self, n_samples: int) -> NDArray[np.float32]:
        """Return the first samples as float32, full scale being 1."""
        samples = self.samples[:n_samples].astype(np.float32)
        if self.full_scale != 1:
            samples *= np.float32(1 / self.full_scale)
        return samples


def parse(content: bytes) -> PlainWav | None:
    """Return the samples of a WAV file, or None when it is anything but a plain and undamaged one.

    Parameters
    ----------
    content : bytes
        All of the file.
    """
    try:
        riff, size, wave = _RIFF.unpack_from(content)
        if (riff, wave) != (b"RIFF", b"WAVE") or size != len(content) - 8:
            return None
        at, layout = _RIFF.size, None
        while True:
            name, size = _CHUNK.unpack_from(content, at)
            at += _CHUNK.size
            if name == b"data":
                return _samples(content, at, size, layout)
            if name == b"fmt " and size == _FORMAT.size and layout is None:
                layout = _FORMAT.unpack_from(content, at)
            elif name not in _SKIPPED:
                return None
            at += size + size % 2
    except struct.error:  # it ends within a header
        return None


def _samples(content: bytes, at: int, size: int, layout: tuple[int, ...] | None) -> PlainWav | None:
    """Return the samples of a data chunk that ends where the file does."""
    if layout is None or at + size != len(content):
        return None
    kind, n_channels, rate, byte_rate, block, bits = layout
    if (kind, bits) not in _SAMPLES or not n_channels or not rate:
        return None
    dtype, full_scale = _SAMPLES[kind, bits]
    if block != n_channels * dtype.itemsize or byte_rate != rate * block or size % block:
        return None
    samples = np.frombuffer(content, dtype=dtype, offset=at).reshape(-1, n_channels)
    return PlainWav(samples, rate, full_scale)
