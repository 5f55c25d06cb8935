"""Rows as white values: of mean 0, and of variance 1 in all directions that vary at all. NumPy only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Variance, of standardised values, under which a direction counts as constant.
_LEAST_VARIANCE = 1e-4


@dataclass(frozen=True)
class Whitening:
    """Rows are `mean + white @ basis`.

    Attributes
    ----------
    mean : ndarray, shape (n_dim,)
    basis : ndarray, shape (n_dim, n_dim)
    """

    mean: NDArray[np.float64]
    basis: NDArray[np.float64]

    @classmethod
    def fit(cls, values: NDArray[np.float64], shrinkage: float = 0.0) -> "Whitening":
        """Return what whitens rows (n, n_dim), with correlations that much nearer to none (1).

        Few rows seem correlated that are not, and seem hardly to vary in some direction where others do (Ledoit
        and Wolf, 2004).
        """
        mean: NDArray[np.float64] = values.mean(axis=0)
        spread: NDArray[np.float64] = np.std(values, axis=0)
        # Equal values may differ from their mean by its rounding.
        scale: NDArray[np.float64] = np.where(spread > 1e-9 * np.abs(mean), spread, 1.0)
        standard: NDArray[np.float64] = (values - mean) / scale
        correlation = standard.T @ standard / len(values)
        shrunk = (1 - shrinkage) * correlation + shrinkage * np.diag(np.diag(correlation))
        variances, directions = np.linalg.eigh(shrunk)
        return cls(mean, np.sqrt(np.maximum(variances, 0) + _LEAST_VARIANCE)[:, None] * directions.T * scale)

    @property
    def log_volume(self) -> float:
        """Logarithm of the volume of rows that white values of volume 1 are."""
        return float(np.linalg.slogdet(self.basis)[1])

    def whiten(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return rows (n, n_dim) as white values."""
        return np.asarray(np.linalg.solve(self.basis.T, (values - self.mean).T).T, dtype=np.float64)
