"""LogSpectrogramExtractor: signals to log-magnitude spectrograms in dB, and back to sound."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ParameterError
from pipeline.inversion import invert_magnitude

# 10 log10(p) as a multiple of ln(p): NumPy has a vectorised float32 logarithm to base e, and none to base 10.
_DB_PER_NEPER = np.float32(10.0 / np.log(10.0))
# How many values of frames are transformed at a time: more outgrow the cache.
_BLOCK_VALUES = 1 << 15


class _Memory(NamedTuple):
    """Of a block of frames, samples, spectrum, the same in single precision, and squares; of a signal, all levels."""

    samples: NDArray[np.float64]
    spectrum: NDArray[np.complex128]
    narrow: NDArray[np.complex64]
    squares: NDArray[np.float32]
    levels: NDArray[np.float32]

    def part(self, start: int, stop: int) -> "_Memory":
        """Return memory for frames of a signal that are a block."""
        n_block = stop - start
        return _Memory(
            self.samples[:n_block],
            self.spectrum[:n_block],
            self.narrow[:n_block],
            self.squares[:n_block],
            self.levels[start:stop],
        )


class LogSpectrogramExtractor:
    """Log-magnitude of the short-time Fourier transform, as `librosa.amplitude_to_db(abs(librosa.stft(y)))`.

    Frames are centred, the signal padded with zeros, the window Hann's. Transforms are computed in double, since
    in single precision bins 80 dB below a frame's peak miss by a hundredth of a dB; power and logarithm in single.

    Parameters
    ----------
    n_fft : int
        Length of a frame in samples; even.
    hop_length : int
        Samples between frames.
    drop_nyquist : bool
        Whether the highest of the `n_fft // 2 + 1` bins is left out, so that their number has many divisors.
    ref, amin : float
        Magnitude that counts as 0 dB, and the least magnitude told apart from zero.
    top_db : float
        Everything more than this below a spectrogram's own maximum is raised to that floor.
    """

    def __init__(
        self,
        n_fft: int = 512,
        hop_length: int = 256,
        drop_nyquist: bool = True,
        ref: float = 1.0,
        amin: float = 1e-5,
        top_db: float = 80.0,
    ) -> None:
        if n_fft < 2 or n_fft % 2:
            raise ParameterError(f"n_fft={n_fft} must be even and at least 2")
        if not 0 < hop_length <= n_fft:
            raise ParameterError(f"hop_length={hop_length} must be between 1 and n_fft={n_fft}")
        if not np.float32(amin**2) >= np.finfo(np.float32).tiny:
            raise ParameterError(f"amin={amin} must be at least 1.1e-19, since power is kept in float32")
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.drop_nyquist = drop_nyquist
        self.ref = float(ref)
        self.amin = float(amin)
        self.top_db = float(top_db)
        self._ref_db = np.float32(20.0 * np.log10(max(amin, ref)))
        self._floor_db = np.float32(20.0 * np.log10(amin)) - self._ref_db
        # Periodic, as `scipy.signal.get_window("hann", n_fft)`, whose import takes a second of each worker. As often as
        # there are frames in a block: to multiply by one again and again takes half as long again.
        self._windows = np.tile(np.hanning(n_fft + 1)[:-1], (max(1, _BLOCK_VALUES // n_fft), 1))

    @property
    def n_bins(self) -> int:
        """Rows of a spectrogram."""
        return self.n_fft // 2 + (0 if self.drop_nyquist else 1)

    def n_frames(self, n_samples: int) -> int:
        """Return the columns of the spectrogram of `n_samples` samples."""
        return 1 + n_samples // self.hop_length

    def frequencies_hz(self, sample_rate: int) -> NDArray[np.float64]:
        """Return the centre of each bin in Hz, shape (n_bins,)."""
        centres: NDArray[np.float64] = np.arange(self.n_bins, dtype=np.float64) * (sample_rate / self.n_fft)
        return centres

    def extract(self, y: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return the spectrograms of signals of one length.

        Parameters
        ----------
        y : ndarray of float32, shape (..., n_samples)
            Signals.
        out : ndarray of float32, shape (..., n_bins, n_frames), optional
            Where the spectrograms go; in C order.

        Returns
        -------
        S_db : ndarray of float32, shape (..., n_bins, n_frames)
            In dB relative to `ref`.
        """
        n_samples = y.shape[-1]
        shape = (*y.shape[:-1], self.n_bins, self.n_frames(n_samples))
        S_db = np.empty(shape, dtype=np.float32) if out is None else out
        padded = np.zeros(n_samples + self.n_fft)
        # As `sliding_window_view(padded, n_fft)[::hop_length]`, which takes as long as a clip's logarithms.
        strides = (self.hop_length * padded.itemsize, padded.itemsize)
        frames: NDArray[np.float64] = np.ndarray((shape[-1], self.n_fft), np.float64, padded, strides=strides)
        memory, n_before = self._memory(len(frames)), self.n_fft // 2
        # Signal by signal: its frames stay in the cache, and its bytes cannot depend on its neighbours.
        with np.errstate(divide="ignore"):  # where power is zero, its logarithm falls below the floor
            for signal, found in zip(y.reshape(-1, n_samples), S_db.reshape(-1, *S_db.shape[-2:]), strict=True):
                n_heard = self._count_heard(signal)
                # As far as those frames reach; behind all signals there are zeros.
                n_used = min(n_samples, (n_heard - 1) * self.hop_length + self.n_fft - n_before)
                padded[n_before : n_before + n_used] = signal[:n_used]
                levels = self._levels(frames[:n_heard], memory)
                floor = max(levels.max() - np.float32(self.top_db), self._floor_db)
                found[:, :n_heard] = np.maximum(levels, floor, out=levels).T
                found[:, n_heard:] = floor
        return S_db

    def _count_heard(self, signal: NDArray[np.float32]) -> int:
        """Return the frames up to the last that is not all zeros, at least one: the rest of them need no transform."""
        last: int = len(signal) - 1 if signal[-1:].any() else (signal != 0).tobytes().rfind(1)
        return min(self.n_frames(len(signal)), 1 + (last + self.n_fft // 2) // self.hop_length)

    def _memory(self, n_frames: int) -> _Memory:
        """Return memory for signals of as many frames."""
        n_block = min(n_frames, len(self._windows))
        return _Memory(
            np.empty((n_block, self.n_fft)),
            np.empty((n_block, self.n_fft // 2 + 1), dtype=np.complex128),
            np.empty((n_block, self.n_bins), dtype=np.complex64),
            np.empty((n_block, self.n_bins), dtype=np.float32),
            np.empty((n_frames, self.n_bins), dtype=np.float32),
        )

    def _levels(self, frames: NDArray[np.float64], memory: _Memory) -> NDArray[np.float32]:
        """Return the dB of frames (n_frames, n_fft), without a floor, shape (n_frames, n_bins)."""
        for start in range(0, len(frames), len(self._windows)):
            some = frames[start : start + len(self._windows)]
            block = memory.part(start, start + len(some))
            # To copy first takes less time than to multiply frames that overlap.
            np.copyto(block.samples, some)
            np.multiply(block.samples, self._windows[: len(some)], out=block.samples)
            np.fft.rfft(block.samples, out=block.spectrum)
            np.copyto(block.narrow, block.spectrum[:, : self.n_bins], casting="same_kind")
            np.square(block.narrow.real, out=block.levels)
            np.square(block.narrow.imag, out=block.squares)
            np.add(block.levels, block.squares, out=block.levels)
        levels = memory.levels[: len(frames)]
        np.log(levels, out=levels)
        levels *= _DB_PER_NEPER
        if self._ref_db:
            levels -= self._ref_db
        return levels

    def magnitude(self, S_db: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return magnitudes (..., n_fft // 2 + 1, n_frames) of spectrograms in dB; a dropped bin is at the floor."""
        if S_db.shape[-2] != self.n_bins:
            raise ParameterError(f"S_db has {S_db.shape[-2]} bins and must have n_bins={self.n_bins}")
        magnitude: NDArray[np.float32] = np.float32(self.ref) * np.power(np.float32(10), S_db.astype(np.float32) / 20)
        if not self.drop_nyquist:
            return magnitude
        nyquist = magnitude.min(axis=(-2, -1), keepdims=True)
        nyquist = np.broadcast_to(nyquist, (*magnitude.shape[:-2], 1, magnitude.shape[-1]))
        return np.concatenate([magnitude, nyquist], axis=-2)

    def invert(self, S_db: NDArray[np.float32], n_samples: int, n_iter: int = 32) -> NDArray[np.float32]:
        """Return signals that have these spectrograms, at their level.

        What comes of a spectrogram depends on its place among the others, and on nothing else of them.

        Parameters
        ----------
        S_db : ndarray, shape (..., n_bins, n_frames)
            In dB. A Nyquist bin that was dropped is put back at the spectrogram's floor.
        n_samples : int
            Length of the signals. Beyond what the frames cover there are zeros.
        n_iter : int
            Iterations of Griffin-Lim, after first phases that follow the peaks' frequencies.

        Returns
        -------
        ndarray of float32, shape (..., n_samples)
        """
        magnitude = self.magnitude(S_db)
        # The inverse transform wants a length of which the transform has as many frames.
        n_hops = magnitude.shape[-1] - 1
        length = int(np.clip(n_samples, n_hops * self.hop_length, (n_hops + 1) * self.hop_length - 1))
        flat = magnitude.reshape(-1, *magnitude.shape[-2:])
        y = invert_magnitude(flat, self.n_fft, self.hop_length, length, n_iter)
        fixed = np.zeros((len(y), n_samples), dtype=np.float32)
        fixed[:, : min(length, n_samples)] = y[:, :n_samples]
        return fixed.reshape(*S_db.shape[:-2], n_samples)
