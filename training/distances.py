"""Distances between sounds and between sets of sounds, and intervals for their means. NumPy, librosa, scikit-learn."""

from collections.abc import Sequence
from typing import Any

import librosa
import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.neighbors import NearestNeighbors

N_MELS = 32
RESOLUTIONS = ((512, 128), (1024, 256), (2048, 512))
_QUIETEST = 1e-5
_RESAMPLES = 2000
_DRAWN_AT_ONCE = 1 << 22


def spectral_convergence_db(
    y: NDArray[np.float32], y_hat: NDArray[np.float32], n_fft: int, hop_length: int
) -> NDArray[np.float64]:
    """Return 20 log10(|S - S_hat| / |S|) of each sound, shape (n,), of sounds (n, n_samples); silence counts as 0."""
    return np.asarray(20 * np.log10(_convergence(*_magnitudes(y, y_hat, n_fft, hop_length))), dtype=np.float64)


def multi_resolution_stft_distance(y: NDArray[np.float32], y_hat: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return spectral convergence plus mean log-magnitude difference, the mean over three resolutions, shape (n,).

    Parameters
    ----------
    y, y_hat : ndarray of float32, shape (n, n_samples)

    References
    ----------
    Yamamoto, Song and Kim, "Parallel WaveGAN", ICASSP 2020, equations 4 to 6.
    """
    total = np.zeros(len(y))
    for n_fft, hop_length in RESOLUTIONS:
        S, S_hat = _magnitudes(y, y_hat, n_fft, hop_length)
        logarithms = (np.log(np.maximum(each, _QUIETEST)) for each in (S, S_hat))
        total += _convergence(S, S_hat) + np.abs(np.subtract(*logarithms)).mean(axis=(-2, -1))
    return total / len(RESOLUTIONS)


def bootstrap_interval(values: ArrayLike, groups: Sequence[str], seed: int) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over rows, groups being drawn as a whole.

    Parameters
    ----------
    values : array_like, shape (n,)
    groups : sequence of str
        Of each row: rows of one group are near each other, so that single rows would make the interval too narrow.
    seed : int
    """
    low, high = bootstrap_intervals(np.asarray(values)[:, None], groups, seed)
    return float(low[0]), float(high[0])


def bootstrap_intervals(
    values: ArrayLike, groups: Sequence[str], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of the 95 % bootstrap intervals of the means of columns, both of shape (n_columns,).

    Parameters
    ----------
    values : array_like, shape (n, n_columns)
    groups : sequence of str
    seed : int
        As for `bootstrap_interval`.
    """
    _, group_of = np.unique(np.asarray(groups), return_inverse=True)
    sizes = np.bincount(group_of)
    sums = np.zeros((len(sizes), np.shape(values)[1]))
    np.add.at(sums, group_of, np.asarray(values, dtype=np.float64))
    rng, shares = np.random.default_rng(seed), np.full(len(sizes), 1 / len(sizes))
    means = np.empty((_RESAMPLES, sums.shape[1]))
    # So many at a time that a large test set does not fill the memory.
    step = max(1, _DRAWN_AT_ONCE // len(sizes))
    for start in range(0, _RESAMPLES, step):
        drawn = rng.multinomial(len(sizes), shares, size=min(step, _RESAMPLES - start))
        means[start : start + step] = (drawn @ sums) / (drawn @ sizes)[:, None]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def log_mel_statistics(magnitude: NDArray[np.float32], sample_rate: int) -> NDArray[np.float64]:
    """Return the mean and the deviation over time of each mel band's level in dB, shape (n, 2 * N_MELS).

    Parameters
    ----------
    magnitude : ndarray of float32, shape (n, n_fft // 2 + 1, n_frames)
    sample_rate : int
        In Hz.
    """
    n_fft = 2 * (magnitude.shape[1] - 1)
    n_mels = min(N_MELS, magnitude.shape[1] // 4)
    mel = librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels)
    power = np.einsum("mb,nbt->nmt", mel, np.square(magnitude, dtype=np.float64))
    level_db = 10 * np.log10(np.maximum(power, _QUIETEST**2))
    return np.concatenate([level_db.mean(axis=2), level_db.std(axis=2)], axis=1)


def frechet_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the Fréchet distance of the Gaussians fitted to two sets of features, shapes (n, d) and (m, d).

    References
    ----------
    Dowson and Landau, "The Fréchet distance between multivariate normal distributions", 1982; the square root of
    what Heusel et al. (2017) call FID and Kilgour et al. (2019) use for audio.
    """
    covariances = [np.atleast_2d(np.cov(each, rowvar=False)) for each in (a, b)]
    # The trace of the root of a product is that of a symmetric one, whose eigenvalues are no less than zero.
    variances, directions = np.linalg.eigh(covariances[0])
    root = (directions * np.sqrt(np.maximum(variances, 0))) @ directions.T
    eigenvalues = np.linalg.eigvalsh(root @ covariances[1] @ root)
    cross = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    squared = np.sum((a.mean(axis=0) - b.mean(axis=0)) ** 2) + sum(np.trace(each) for each in covariances) - 2 * cross
    return float(np.sqrt(max(squared, 0.0)))


def nearest(z: NDArray[np.float32], among: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return for each latent vector the place of the nearest of others, and how far that is, both shape (n,)."""
    distance, place = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(among).kneighbors(z)
    return place[:, 0], distance[:, 0].astype(np.float64)


def _magnitudes(*signals: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the magnitudes of two signals' transforms; those of frames longer than they are see zeros around."""
    *pair, n_fft, hop_length = signals
    padded = (librosa.util.fix_length(np.asarray(y), size=max(y.shape[-1], n_fft)) for y in pair)
    first, second = (np.abs(librosa.stft(y, n_fft=n_fft, hop_length=hop_length)) for y in padded)
    return first, second


def _convergence(S: NDArray[np.float32], S_hat: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return |S - S_hat| / |S|, which is 1 for silence that comes back as anything, and at least 1e-6."""
    difference, norm = (np.linalg.norm(each.astype(np.float64), axis=(-2, -1)) for each in (S - S_hat, S))
    ratio: NDArray[np.float64] = np.where(norm > 0, difference / np.where(norm > 0, norm, 1.0), 1.0)
    return np.maximum(ratio, 1e-6)
