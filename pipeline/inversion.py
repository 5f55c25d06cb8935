"""Magnitudes back to sound: phases that go on from frame to frame as peaks' frequencies say, then Griffin-Lim.

Griffin-Lim alone starts from random phases. Where frames overlap by half only, it then settles on phases that turn at
another rate than the sound's, and low tones come back out of tune.
"""

import numpy as np
from numpy.typing import NDArray

from pipeline.griffin_lim import griffin_lim

# Signals that go through together: as many as keep the transforms' arrays in the cache.
_BATCH = 16


def peak_phases(magnitude: NDArray[np.float32], n_fft: int, hop_length: int) -> NDArray[np.complex64]:
    """Return the phases of a short-time Fourier transform whose peaks are sinusoids.

    Each peak's frequency is read off its two strongest bins, exactly for a lone sinusoid under Hann's window. Its
    phase goes on from where its bin was in the frame before, by the mean of both frequencies, and the bins nearest to
    a peak take its phase.

    Parameters
    ----------
    magnitude : ndarray of float32, shape (n, n_fft // 2 + 1, n_frames)
        Frames are windowed by Hann.
    n_fft, hop_length : int
        In samples.

    Returns
    -------
    ndarray of complex64, of the same shape
        Of magnitude 1.

    References
    ----------
    Beauregard, Harish and Wyse, "Single pass spectrogram inversion", IEEE DSP 2015; the frequency of a peak under
    Hann's window: Grandke, "Interpolation algorithms for discrete Fourier transforms", IEEE TIM 1983.
    """
    bins = np.arange(magnitude.shape[1])
    phases = np.empty(magnitude.shape, dtype=np.float64)
    before = None
    for frame in range(magnitude.shape[2]):
        nearest, frequency = _peaks(magnitude[:, :, frame])
        if before is None:
            phase = np.zeros(frequency.shape)
        else:
            phase_before, frequency_before = (np.take_along_axis(each, nearest, axis=1) for each in before)
            phase = phase_before + np.pi * hop_length / n_fft * (frequency + frequency_before)
        before = phase, frequency
        phases[:, :, frame] = phase
    # Phases so far are those in the middle of a frame; a transform counts from its start, half a frame before.
    phases += np.pi * (bins % 2)[:, None]
    return np.asarray(np.exp(1j * phases), dtype=np.complex64)


def invert_magnitude(
    magnitude: NDArray[np.float32], n_fft: int, hop_length: int, length: int, n_iter: int
) -> NDArray[np.float32]:
    """Return signals (n, length) of magnitudes (n, n_fft // 2 + 1, n_frames): phases by peaks, then Griffin-Lim."""
    y = np.empty((len(magnitude), length), dtype=np.float32)
    for start in range(0, len(y), _BATCH):
        part = magnitude[start : start + _BATCH]
        phases = peak_phases(part, n_fft, hop_length)
        y[start : start + _BATCH] = griffin_lim(part, phases, hop_length, length, n_iter)
    return y


def _peaks(magnitude: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return, for each bin of frames (n, n_bins), the bin of the nearest peak and that peak's frequency in bins."""
    n_bins = magnitude.shape[1]
    bins = np.arange(n_bins)
    edge = np.full((len(magnitude), 1), -1.0, dtype=np.float32)
    below = np.concatenate([edge, magnitude[:, :-1]], axis=1)
    above = np.concatenate([magnitude[:, 1:], edge], axis=1)
    is_peak = (magnitude > below) & (magnitude >= above)
    ratio = np.maximum(below, above) / np.maximum(magnitude, np.finfo(np.float32).tiny, dtype=np.float64)
    offset = np.clip((2 * ratio - 1) / (ratio + 1), 0.0, 0.5)
    frequency = bins + np.where(above > below, offset, -offset)
    far = 2 * n_bins
    lower = np.maximum.accumulate(np.where(is_peak, bins, -far), axis=1)
    upper = np.minimum.accumulate(np.where(is_peak, bins, far)[:, ::-1], axis=1)[:, ::-1]
    # A frame's maximum is a peak, so that there is one on one side at least.
    nearest = np.where(bins - lower <= upper - bins, lower, upper)
    return nearest, np.take_along_axis(frequency, nearest, axis=1)
