"""Latent codes of spectrograms, with the levels that their normalisation took away. NumPy only."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from training.dataset import Spectrograms
    from training.sound import Network

# What PCA and densities are fitted on, at most.
FITTED_ROWS = 10_000


@dataclass(frozen=True)
class Codes:
    """Everything that decodes to sounds.

    Attributes
    ----------
    z : ndarray of float32, shape (n, latent_dim)
        Latent vectors.
    min_db, max_db : ndarray of float32, shape (n,)
        Extremes of the spectrograms in dB, which undo their normalisation.
    """

    z: NDArray[np.float32]
    min_db: NDArray[np.float32]
    max_db: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.z)

    def take(self, which: NDArray[np.int64]) -> "Codes":
        """Return some of the codes, by their place."""
        return Codes(self.z[which], self.min_db[which], self.max_db[which])


def choose_rows(n_rows: int, limit: int, seed: int) -> NDArray[np.int64]:
    """Return at most `limit` rows, chosen by the seed, in their order."""
    return np.sort(np.random.default_rng(seed).permutation(n_rows)[:limit])


def encode(autoencoder: "Network", spectrograms: "Spectrograms", which: NDArray[np.int64] | None = None) -> Codes:
    """Return the codes of spectrograms, by their rows; by default of all."""
    which = np.arange(len(spectrograms)) if which is None else which
    z = [autoencoder.encode(x) for x in spectrograms.evaluation_slices(which=which)]
    min_db, max_db = spectrograms.extremes_db
    empty = np.empty((0, autoencoder.architecture.latent_space_dim), dtype=np.float32)
    return Codes(np.concatenate([empty, *z]), min_db[which], max_db[which])
