"""Signals that have given magnitudes of the short-time Fourier transform: phases by the fast Griffin-Lim algorithm.

As `librosa.griffinlim`, number for number, in less time: a fraction of it for one short spectrogram.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOMENTUM = 0.99


def griffin_lim(
    magnitude: NDArray[Any], phases: NDArray[Any], hop_length: int, n_samples: int, n_iter: int
) -> NDArray[Any]:
    """Return signals of which the transform (Hann's window, centred frames, zeros around) has these magnitudes.

    Parameters
    ----------
    magnitude : ndarray of float, shape (n, n_fft // 2 + 1, n_frames)
        Computed with in their own precision.
    phases : ndarray of complex, of the same shape
        To start from, of magnitude 1.
    hop_length : int
        In samples.
    n_samples : int
        Length of the signals: one of which the transform has as many frames.
    n_iter : int

    Returns
    -------
    ndarray of float, shape (n, n_samples)
        Each follows from its own magnitudes and phases alone.

    References
    ----------
    Perraudin, Balazs and Søndergaard, "A fast Griffin-Lim algorithm", WASPAA 2013; `librosa.griffinlim`.
    """
    _, n_bins, n_frames = magnitude.shape
    assert (n_frames - 1) * hop_length <= n_samples < n_frames * hop_length, (n_samples, n_frames, hop_length)
    transform = _Transform(2 * (n_bins - 1), hop_length, n_frames, n_samples, magnitude.dtype)
    y = np.empty((len(magnitude), n_samples), dtype=magnitude.dtype)
    # One by one: what an iteration touches fits the cache.
    for each, start, out in zip(magnitude, phases, y, strict=True):
        rows = np.ascontiguousarray(each.T)
        out[:] = _find_phases(rows, rows * start.T.astype(transform.complex_dtype), transform, n_iter)
    return y


def _find_phases(magnitude: NDArray[Any], spectrum: NDArray[Any], transform: "_Transform", n_iter: int) -> NDArray[Any]:
    """Return the signal of one spectrogram (n_frames, n_bins), from a first spectrum of these magnitudes on."""
    tiny = np.finfo(magnitude.dtype).tiny
    previous: NDArray[Any] | None = None
    for _ in range(n_iter):
        rebuilt = transform.forward(transform.inverse(spectrum))
        spectrum = rebuilt if previous is None else rebuilt - (_MOMENTUM / (1 + _MOMENTUM)) * previous
        spectrum = spectrum * (magnitude / (np.abs(spectrum) + tiny))
        previous = rebuilt
    return transform.inverse(spectrum)


class _Transform:
    """The transform of signals of one length, and its inverse, with frames in rows.

    Parameters
    ----------
    n_fft, hop_length, n_frames, n_samples : int
    dtype : dtype
        Of signals and windows.
    """

    def __init__(self, n_fft: int, hop_length: int, n_frames: int, n_samples: int, dtype: np.dtype[Any]) -> None:
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.n_samples = n_samples
        self.complex_dtype = np.result_type(dtype, np.complex64)
        self._window = np.hanning(n_fft + 1)[:-1].astype(dtype)
        self._padded = np.zeros(n_samples + n_fft, dtype=dtype)
        self._frames = np.lib.stride_tricks.sliding_window_view(self._padded, n_fft)[::hop_length]
        weights = self._overlap_add(np.broadcast_to(self._window**2, (n_frames, n_fft)))
        self._scale = 1 / np.where(weights > np.finfo(dtype).tiny, weights, dtype.type(1))

    def forward(self, y: NDArray[Any]) -> NDArray[Any]:
        """Return the spectrum (n_frames, n_bins) of a signal (n_samples,)."""
        self._padded[self.n_fft // 2 :][: self.n_samples] = y
        spectrum: NDArray[Any] = np.fft.rfft(self._frames * self._window, axis=1)
        return spectrum

    def inverse(self, spectrum: NDArray[Any]) -> NDArray[Any]:
        """Return the signal (n_samples,) whose spectrum is nearest."""
        frames = np.fft.irfft(spectrum, self.n_fft, axis=1)
        frames *= self._window
        return self._overlap_add(frames) * self._scale

    def _overlap_add(self, frames: NDArray[Any]) -> NDArray[Any]:
        """Return the sum (n_samples,) of frames (n_frames, n_fft), each a hop after the one before."""
        n_frames, hop = len(frames), self.hop_length
        starts = range(0, self.n_fft, hop)
        # Hops that end one frame's window begin others': as many sums as a frame has hops, not as there are frames.
        total = np.zeros((n_frames + len(starts), hop), dtype=frames.dtype)
        for row, start in enumerate(starts):
            part = frames[:, start : start + hop]
            total[row : row + n_frames, : part.shape[1]] += part
        y = np.zeros(self.n_samples, dtype=frames.dtype)
        heard = total.reshape(-1)[self.n_fft // 2 :][: self.n_samples]
        y[: len(heard)] = heard
        return y
