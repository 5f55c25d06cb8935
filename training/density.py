"""A density over latent codes and levels: what new sounds are drawn from. NumPy and scikit-learn.

Latent vectors and levels are fitted together, since how loud a sound is goes with what it is.
"""

import os
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

from pipeline.errors import ModelError, ParameterError
from training.candidates import FLOW, Candidate, choose, fit_mixture
from training.codes import Codes
from training.flow import Flow, FlowTraining
from training.whitening import Whitening

FORMAT_VERSION = 2
DENSITY_FILE = "density.npz"
_OF_FLOW = "flow_"


@dataclass(frozen=True)
class Density:
    """A mixture of Gaussians, or a flow, over whitened codes: (latent vector, max_db, max_db - min_db).

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
    scores : dict
        Of every candidate, by kind and size, the mean log-likelihood per held-out row, in nats, by which one was
        chosen. Empty when there was too little to hold out.
    flow : Flow, optional
        From white values to those that the mixture, then one normal distribution, is of.
    """

    mean: NDArray[np.float64]
    basis: NDArray[np.float64]
    weights: NDArray[np.float64]
    means: NDArray[np.float64]
    factors: NDArray[np.float64]
    levels_db: NDArray[np.float64]
    covariance_type: str
    scores: dict[Candidate, float]
    flow: Flow | None = None

    @classmethod
    def fit(
        cls,
        z: ArrayLike,
        min_db: ArrayLike,
        max_db: ArrayLike,
        seed: int,
        groups: Sequence[str] | None = None,
    ) -> "Density":
        """Fit Gaussians, mixtures of them and a flow; the likelihood of held-out rows decides between them.

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
            choice = choose(values, groups or range(len(values)), seed)
            whitening = Whitening.fit(values, choice.shrinkage)
            density = cls(
                whitening.mean,
                whitening.basis,
                *_standard_normal(values.shape[1]),
                np.stack([values[:, -2:].min(axis=0), values[:, -2:].max(axis=0)]),
                "spherical",
                choice.scores,
            )
            kind, size = choice.best
            white = whitening.whiten(values)
            if kind == FLOW:
                training = FlowTraining(white, size, seed)
                training.run(choice.flow_steps[size])
                return replace(density, flow=training.flow)
            mixture = fit_mixture(kind, size, seed, white)
        weights, means = mixture.weights_, mixture.means_
        return replace(density, weights=weights, means=means, factors=_factors(mixture), covariance_type=kind)

    @property
    def kind(self) -> Candidate:
        """What it is: the shape of covariances and the number of components, or a flow and the number of couplings."""
        return (self.covariance_type, len(self.weights)) if self.flow is None else (FLOW, len(self.flow.order))

    @property
    def held_out_log_likelihood(self) -> float:
        """Mean per held-out row, in nats, by which it was chosen; NaN when there was too little to hold out."""
        return self.scores.get(self.kind, float("nan"))

    @property
    def family_scores(self) -> dict[str, float]:
        """The greatest of `scores` among Gaussians, mixtures and flows; of those that were tried."""
        found: dict[str, float] = {}
        for (kind, size), score in self.scores.items():
            family = "flow" if kind == FLOW else "gaussian" if size == 1 else "mixture"
            found[family] = max(score, found.get(family, score))
        return found

    @property
    def latent_space_dim(self) -> int:
        """Length of the latent vectors."""
        return len(self.mean) - 2

    def describe(self) -> str:
        """Return what it is, for a person."""
        if self.flow is not None:
            return f"a normalising flow ({len(self.flow.order)} couplings)"
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
        white: NDArray[np.floating[Any]] = self.means[component] + spread
        if self.flow is not None:
            with threadpool_limits(1):
                white = self.flow.inverse(white)
        values = self.mean + _product(white, self.basis)
        max_db, span_db = np.clip(values[:, -2:], *self.levels_db).T
        return Codes(*(each.astype(np.float32) for each in (values[:, :-2], max_db - span_db, max_db)))

    def log_likelihood(self, codes: Codes) -> NDArray[np.float64]:
        """Return the logarithm of the density at codes, of (latent vector, max_db, max_db - min_db), in nats, (n,)."""
        whitening = Whitening(self.mean, self.basis)
        flow = self.flow or Flow.identity(len(self.mean), 0, np.random.default_rng(0))
        white, log_volume = flow.forward(whitening.whiten(_values(codes)))
        parts = []
        for weight, mean, factor in zip(self.weights, self.means, self.factors, strict=True):
            diagonal = factor if factor.ndim == 1 else np.diag(factor)
            away = (white - mean).T
            away = away / diagonal[:, None] if factor.ndim == 1 else np.linalg.solve(factor, away)
            normaliser = np.log(diagonal).sum() + len(mean) / 2 * np.log(2 * np.pi)
            parts.append(np.log(weight) - normaliser - (away**2).sum(axis=0) / 2)
        total: NDArray[np.float64] = np.logaddexp.reduce(parts, axis=0)
        return total + log_volume - whitening.log_volume

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `density.npz` into a folder, which is made if need be."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        np.savez(path / DENSITY_FILE, format_version=FORMAT_VERSION, **self._arrays())

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
            density = cls._from_arrays(arrays)
            density._check()
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{path}: holds no density: {error}") from error
        return density

    def _arrays(self) -> dict[str, Any]:
        """Return what is written: no array holds anything but numbers or text."""
        arrays = {name: value for name, value in vars(self).items() if name not in {"scores", "flow"}}
        arrays["candidate_kinds"] = np.array([kind for kind, _ in self.scores], dtype=np.str_)
        arrays["candidate_sizes"] = np.array([size for _, size in self.scores], dtype=np.int64)
        arrays["candidate_scores"] = np.array(list(self.scores.values()), dtype=np.float64)
        of_flow = {} if self.flow is None else vars(self.flow)
        return arrays | {_OF_FLOW + name: value for name, value in of_flow.items()}

    @classmethod
    def _from_arrays(cls, arrays: dict[str, Any]) -> "Density":
        of_flow = {name: arrays.pop(name) for name in list(arrays) if name.startswith(_OF_FLOW)}
        names = zip(arrays.pop("candidate_kinds").tolist(), arrays.pop("candidate_sizes").tolist(), strict=True)
        scores = dict(zip(names, arrays.pop("candidate_scores").tolist(), strict=True))
        flow = Flow(**{name.removeprefix(_OF_FLOW): value for name, value in of_flow.items()}) if of_flow else None
        covariance_type = str(arrays.pop("covariance_type"))
        return cls(**arrays, covariance_type=covariance_type, scores=scores, flow=flow)

    def _check(self) -> None:
        """Refuse arrays that do not fit each other."""
        (n_components,), (n_dim,) = self.weights.shape, self.mean.shape
        expected = {"basis": (n_dim, n_dim), "means": (n_components, n_dim), "levels_db": (2, 2)}
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, expected {shape}")
        if self.factors.shape not in ((n_components, n_dim), (n_components, n_dim, n_dim)):
            raise ValueError(f"factors has shape {self.factors.shape}, expected {n_components} of {n_dim} values")
        if self.flow is not None:
            self.flow.check(n_dim)
        for name, value in vars(self).items():
            if isinstance(value, np.ndarray) and (value.dtype != np.float64 or not np.isfinite(value).all()):
                raise ValueError(f"{name} holds what is no finite number")


def _values(codes: Codes) -> NDArray[np.float64]:
    """Return codes as rows of numbers: latent vector, max_db, max_db - min_db."""
    max_db = codes.max_db.astype(np.float64)
    return np.column_stack([codes.z, max_db, max_db - codes.min_db])


def _standard_normal(n_dim: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return weights, means and factors of one component."""
    return np.ones(1), np.zeros((1, n_dim)), np.ones((1, n_dim))


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


def _product(rows: NDArray[np.floating[Any]], matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = np.einsum("ij,jk->ik", rows, matrix, optimize=False)
    return product
