"""How far reconstructions are from what was heard, and what simpler models would have done.

librosa, NumPy and scikit-learn.
"""

import librosa
import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from training.codes import FITTED_ROWS, choose_rows
from training.dataset import Spectrograms

# What is further below the loudest of a sound is not told apart: nobody hears it, and its logarithm has no end.
_RANGE_DB = 80.0
_LEAST_POWER = 1e-10


def mean_squared_error(x: NDArray[np.float32], x_hat: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean squared difference of each row, shape (n,), of rows of any shape; summed in double."""
    difference = (x - x_hat).reshape(len(x), -1)
    squares: NDArray[np.float64] = np.einsum("ij,ij->i", difference, difference, dtype=np.float64)
    return squares / difference.shape[1]


def log_spectral_distance_db(
    y: NDArray[np.float32], y_hat: NDArray[np.float32], n_fft: int = 2048, hop_length: int = 512
) -> NDArray[np.float64]:
    """Return how far apart the spectra of sounds are, in dB, whatever made them.

    In each frame the root of the mean square, over bins, of the difference of levels; and of that the mean over frames.

    Parameters
    ----------
    y, y_hat : ndarray of float32, shape (n, n_samples)
        Sounds, and what stands for them. Levels further than 80 dB below the highest of `y` count as that.
    n_fft, hop_length : int
        In samples. Of this measure alone: models with other frames are compared by it.

    Returns
    -------
    ndarray of float64, shape (n,)

    References
    ----------
    Gray and Markel, "Distance measures for speech processing", IEEE Transactions on Acoustics, Speech, and Signal
    Processing 24 (1976).
    """
    distances = np.empty(len(y), dtype=np.float64)
    # Of shorter ones librosa warns.
    missing = ((0, 0), (0, max(0, n_fft - y.shape[1])))
    for place, pair in enumerate(zip(np.pad(y, missing), np.pad(y_hat, missing), strict=True)):
        power, power_hat = (
            np.abs(librosa.stft(each, n_fft=n_fft, hop_length=hop_length, pad_mode="constant")).astype(np.float64) ** 2
            for each in pair
        )
        least = max(power.max() / 10 ** (_RANGE_DB / 10), _LEAST_POWER)
        difference_db = 10 * np.log10(np.maximum(power, least) / np.maximum(power_hat, least))
        distances[place] = np.sqrt(np.mean(difference_db**2, axis=0)).mean()
    return distances


def mean_squared_error_by_bin(x: NDArray[np.float32], x_hat: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean squared difference of each row in each bin, shape (n, n_bins), of (n, n_bins, n_frames, 1)."""
    difference = (x - x_hat)[..., 0]
    squares: NDArray[np.float64] = np.einsum("ijk,ijk->ij", difference, difference, dtype=np.float64)
    return np.asarray(squares / difference.shape[2])


def mean_predictor(train: Spectrograms) -> NDArray[np.float32]:
    """Return the mean of all rows, shape (n_bins, n_frames, 1): the best guess that looks at nothing."""
    total = np.zeros(train.shape, dtype=np.float64)
    for x in train.evaluation_slices():
        total += x.sum(axis=0, dtype=np.float64)
    return (total / len(train)).astype(np.float32)


class LinearAutoencoder:
    """PCA: the best linear autoencoder of a size, and the bar for any other.

    Parameters
    ----------
    train : Spectrograms
        Fitted on at most 10,000 rows of it, chosen by the seed.
    n_components : int
        Length of its latent vector; at most the number of rows and of values in each.
    seed : int
    """

    def __init__(self, train: Spectrograms, n_components: int, seed: int) -> None:
        rows = choose_rows(len(train), FITTED_ROWS, seed)
        x = train.rows(rows).reshape(len(rows), -1)
        self.n_components = min(n_components, *x.shape)
        self._pca = PCA(self.n_components, svd_solver="randomized", random_state=seed).fit(x)

    def reconstruct(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return rows of any shape (n, ...) as their components keep them."""
        return self.decode(self.encode(x), x.shape[1:])

    def encode(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the components (n, n_components) of rows of any shape (n, ...)."""
        z: NDArray[np.float32] = self._pca.transform(x.reshape(len(x), -1))
        return z

    def decode(self, z: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return rows (n, *shape) of components (n, n_components)."""
        x_hat: NDArray[np.float32] = self._pca.inverse_transform(z)
        return x_hat.reshape(len(z), *shape).astype(np.float32)
