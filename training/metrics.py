"""How far reconstructions are from what was heard, and what simpler models would have done. NumPy and scikit-learn."""

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from training.dataset import Spectrograms

PCA_ROWS = 10_000


def mean_squared_error(x: NDArray[np.float32], x_hat: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean squared difference of each row, shape (n,), of rows of any shape; summed in double."""
    difference = (x - x_hat).reshape(len(x), -1)
    squares: NDArray[np.float64] = np.einsum("ij,ij->i", difference, difference, dtype=np.float64)
    return squares / difference.shape[1]


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
        rows = np.random.default_rng(seed).permutation(len(train))[:PCA_ROWS]
        x = train.rows(np.sort(rows)).reshape(len(rows), -1)
        self.n_components = min(n_components, *x.shape)
        self._pca = PCA(self.n_components, svd_solver="randomized", random_state=seed).fit(x)

    def reconstruct(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return rows of any shape (n, ...) as their components keep them."""
        flat = x.reshape(len(x), -1)
        x_hat: NDArray[np.float32] = self._pca.inverse_transform(self._pca.transform(flat))
        return x_hat.reshape(x.shape).astype(np.float32)
