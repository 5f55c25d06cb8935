"""A density over latent codes and levels: what new sounds are drawn from. NumPy and scikit-learn.

Latent vectors and levels are fitted together, since how loud a sound is goes with what it is.
"""

import os
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GroupKFold
from threadpoolctl import threadpool_limits

from pipeline.errors import ModelError, ParameterError
from training.codes import Codes

FORMAT_VERSION = 1
DENSITY_FILE = "density.npz"
# What is tried: numbers of components, by the shape of their covariances. One component is a Gaussian.
CANDIDATES = {"spherical": (1, 2, 4, 8, 16, 32), "diag": (1, 2, 4, 8, 16, 32), "tied": (1, 4), "full": (2, 4, 8, 16)}
_FOLDS = 3
# Variances, of standardised and of whitened values, under which a direction counts as constant.
_LEAST_VARIANCE = 1e-4
_LEAST_WHITE_VARIANCE = 1e-3


@dataclass(frozen=True)
class _Whitening:
    """values = mean + white @ basis, with white values of variance 1 in all directions that vary at all."""

    mean: NDArray[np.float64]
    basis: NDArray[np.float64]

    @classmethod
    def fit(cls, values: NDArray[np.float64]) -> "_Whitening":
        mean: NDArray[np.float64] = values.mean(axis=0)
        spread: NDArray[np.float64] = np.std(values, axis=0)
        scale: NDArray[np.float64] = np.where(spread > 0, spread, 1.0)
        standard: NDArray[np.float64] = (values - mean) / scale
        variances, directions = np.linalg.eigh(standard.T @ standard / len(values))
        return cls(mean, np.sqrt(np.maximum(variances, 0) + _LEAST_VARIANCE)[:, None] * directions.T * scale)

    def whiten(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.linalg.solve(self.basis.T, (values - self.mean).T).T, dtype=np.float64)


@dataclass(frozen=True)
class Density:
    """A mixture of Gaussians over whitened codes: (latent vector, max_db, max_db - min_db).

    Attributes
    ----------
    mean : ndarray, shape (n_dim,)
        Of all codes.
    basis : ndarray, shape (n_dim, n_dim)
        From white values to codes: `mean + white @ basis`.
    weights : ndarray, shape (n_components,)
    means : ndarray, shape (n_components, n_dim)
        Of the components, white.
    factors : ndarray, shape (n_components, n_dim, n_dim) or (n_components, n_dim)
        Square roots of their covariances, white: lower triangles, or diagonals.
    levels_db : ndarray, shape (2, 2)
        Least and greatest (max_db, max_db - min_db) that were seen; none outside is drawn.
    covariance_type : str
        As scikit-learn names it.
    held_out_log_likelihood : float
        Mean per row, in nats, by which this mixture was chosen. NaN when there was too little to hold out.
    """

    mean: NDArray[np.float64]
    basis: NDArray[np.float64]
    weights: NDArray[np.float64]
    means: NDArray[np.float64]
    factors: NDArray[np.float64]
    levels_db: NDArray[np.float64]
    covariance_type: str
    held_out_log_likelihood: float

    @classmethod
    def fit(
        cls,
        z: ArrayLike,
        min_db: ArrayLike,
        max_db: ArrayLike,
        seed: int,
        groups: Sequence[str] | None = None,
    ) -> "Density":
        """Fit Gaussians and mixtures of them; the likelihood of held-out rows decides between them.

        Parameters
        ----------
        z : array_like, shape (n, latent_dim)
        min_db, max_db : array_like, shape (n,)
        seed : int
        groups : sequence of str, optional
            Of each row; a group is held out as a whole. By default every row is its own.

        Raises
        ------
        ParameterError
            There are fewer than two rows, or a value is not finite.
        """
        values = _values(Codes(*(np.asarray(each, dtype=np.float32) for each in (z, min_db, max_db))))
        if len(values) < 2 or not np.isfinite(values).all():
            raise ParameterError(f"a density wants at least two rows of finite codes, and got {values.shape}")
        # One thread, since the order in which several add up depends on their number.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # what has not converged is judged as it is
            covariance_type, n_components, score = _choose(values, groups or range(len(values)), seed)
            whitening = _Whitening.fit(values)
            mixture = _mixture(covariance_type, n_components, seed).fit(whitening.whiten(values))
        return cls(
            whitening.mean,
            whitening.basis,
            mixture.weights_,
            mixture.means_,
            _factors(mixture),
            np.stack([values[:, -2:].min(axis=0), values[:, -2:].max(axis=0)]),
            covariance_type,
            score,
        )

    @property
    def latent_space_dim(self) -> int:
        """Length of the latent vectors."""
        return len(self.mean) - 2

    def describe(self) -> str:
        """Return what it is, for a person."""
        if len(self.weights) == 1:
            return f"a Gaussian ({self.covariance_type} covariance)"
        return f"a mixture of {len(self.weights)} Gaussians ({self.covariance_type} covariances)"

    def sample(self, count: int, seed: int) -> Codes:
        """Draw codes; the same for the same count and seed."""
        rng = np.random.default_rng(seed)
        component = rng.choice(len(self.weights), size=count, p=self.weights / self.weights.sum())
        noise = rng.normal(size=(count, len(self.mean)))
        # einsum without BLAS, whose last bits depend on the number of threads.
        spread = np.empty_like(noise)
        for each in np.unique(component):
            chosen, factor = component == each, self.factors[each]
            spread[chosen] = noise[chosen] * factor if factor.ndim == 1 else _product(noise[chosen], factor.T)
        values = self.mean + _product(self.means[component] + spread, self.basis)
        max_db, span_db = np.clip(values[:, -2:], *self.levels_db).T
        return Codes(*(each.astype(np.float32) for each in (values[:, :-2], max_db - span_db, max_db)))

    def log_likelihood(self, codes: Codes) -> NDArray[np.float64]:
        """Return the logarithm of the density at codes in nats, shape (n,), in white coordinates."""
        white = _Whitening(self.mean, self.basis).whiten(_values(codes))
        parts = []
        for weight, mean, factor in zip(self.weights, self.means, self.factors, strict=True):
            diagonal = factor if factor.ndim == 1 else np.diag(factor)
            away = (white - mean).T
            away = away / diagonal[:, None] if factor.ndim == 1 else np.linalg.solve(factor, away)
            normaliser = np.log(diagonal).sum() + len(mean) / 2 * np.log(2 * np.pi)
            parts.append(np.log(weight) - normaliser - (away**2).sum(axis=0) / 2)
        total: NDArray[np.float64] = np.logaddexp.reduce(parts, axis=0)
        return total

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `density.npz` into a folder, which is made if need be."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        np.savez(path / DENSITY_FILE, format_version=FORMAT_VERSION, **asdict(self))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Density":
        """Return the density that `save` wrote.

        Raises
        ------
        ModelError
            The file is missing, damaged, or of another version.
        """
        path = Path(folder) / DENSITY_FILE
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
        except FileNotFoundError as error:
            raise ModelError(f"{path}: missing; the train stage has not finished here") from error
        except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error, KeyError) as error:
            raise ModelError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
        version = arrays.pop("format_version", np.array(None)).tolist()
        if version != FORMAT_VERSION:
            raise ModelError(f"{path}: format_version is {version!r}, expected {FORMAT_VERSION}")
        try:
            arrays["covariance_type"] = str(arrays["covariance_type"])
            arrays["held_out_log_likelihood"] = float(arrays["held_out_log_likelihood"])
            density = cls(**arrays)
            density._check()
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path}: holds no density: {error}") from error
        return density

    def _check(self) -> None:
        """Refuse arrays that do not fit each other."""
        (n_components,), (n_dim,) = self.weights.shape, self.mean.shape
        expected = {"basis": (n_dim, n_dim), "means": (n_components, n_dim), "levels_db": (2, 2)}
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")
        if self.factors.shape not in ((n_components, n_dim), (n_components, n_dim, n_dim)):
            raise ValueError(f"factors has shape {self.factors.shape}, expected {n_components} of {n_dim} values")
        for name, value in asdict(self).items():
            if isinstance(value, np.ndarray) and (value.dtype != np.float64 or not np.isfinite(value).all()):
                raise ValueError(f"{name} holds what is no finite number")


def _values(codes: Codes) -> NDArray[np.float64]:
    """Return codes as rows of numbers: latent vector, max_db, max_db - min_db."""
    max_db = codes.max_db.astype(np.float64)
    return np.column_stack([codes.z, max_db, max_db - codes.min_db])


def _choose(values: NDArray[np.float64], groups: Sequence[str] | range, seed: int) -> tuple[str, int, float]:
    """Return the candidate of the greatest likelihood of what is held out in turn, and that likelihood."""
    n_folds = min(_FOLDS, len(set(groups)))
    if n_folds < 2 or len(values) < 2 * _FOLDS:
        return "spherical", 1, float("nan")
    folds = []
    for fitted, held_out in GroupKFold(n_folds, shuffle=True, random_state=seed).split(values, groups=list(groups)):
        whitening = _Whitening.fit(values[fitted])
        folds.append((whitening.whiten(values[fitted]), whitening.whiten(values[held_out])))
    scores: dict[tuple[str, int], float] = {}
    for covariance_type, sizes in CANDIDATES.items():
        for n_components in sizes:
            if n_components > min(len(fitted) for fitted, _ in folds):
                break
            score = _held_out_log_likelihood(covariance_type, n_components, folds, seed)
            if covariance_type == "full" and score < scores.get((covariance_type, n_components // 2), score):
                break  # each has so many numbers that more of them only cost more time
            scores[covariance_type, n_components] = score
    best = max(scores, key=lambda candidate: scores[candidate])
    return *best, scores[best]


def _held_out_log_likelihood(
    covariance_type: str, n_components: int, folds: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], seed: int
) -> float:
    """Return the mean over all rows, each in the mixture that was fitted without it."""
    sums = [
        _mixture(covariance_type, n_components, seed).fit(fitted).score(held_out) * len(held_out)
        for fitted, held_out in folds
    ]
    return float(np.sum(sums) / sum(len(held_out) for _, held_out in folds))


def _mixture(covariance_type: str, n_components: int, seed: int) -> GaussianMixture:
    # "k-means++" only chooses rows to start from; the k-means of the default adds up in threads' order.
    return GaussianMixture(
        n_components,
        covariance_type=covariance_type,
        reg_covar=_LEAST_WHITE_VARIANCE,
        init_params="k-means++",
        random_state=seed,
    )


def _factors(mixture: GaussianMixture) -> NDArray[np.float64]:
    """Return square roots of each component's covariance: a lower triangle, or a diagonal."""
    covariances, shape = mixture.covariances_, mixture.means_.shape
    if mixture.covariance_type == "full":
        factors = np.linalg.cholesky(covariances)
    elif mixture.covariance_type == "tied":
        factors = np.repeat(np.linalg.cholesky(covariances)[None], shape[0], axis=0)
    else:
        factors = np.sqrt(covariances if mixture.covariance_type == "diag" else covariances[:, None])
        factors = np.broadcast_to(factors, shape).copy()
    return factors


def _product(rows: NDArray[np.float64], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = np.einsum("ij,jk->ik", rows, matrix, optimize=False)
    return product
