"""Densities that may be fitted to white values, and which of them says most of what it has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GroupKFold

from training.flow import FlowTraining
from training.whitening import Whitening

# What is tried: numbers of components of mixtures, by the shape of their covariances, one component being a Gaussian;
# and numbers of couplings of flows.
FLOW = "flow"
CANDIDATES = {
    "spherical": (1, 2, 4, 8, 16, 32),
    "diag": (1, 2, 4, 8, 16, 32),
    "tied": (1, 4),
    "full": (2, 4, 8, 16),
    FLOW: (6,),
}
# By how much correlations are made smaller before that.
SHRINKAGES = (0.0, 0.1, 0.3, 0.6, 1.0)
_FOLDS = 3
# Variance of white values under which a component is not allowed to shrink.
_LEAST_VARIANCE = 1e-3
# A flow is trained as long as held-out rows become likelier, looked at after so many steps, and so many times in vain.
_STEPS, _MOST_STEPS, _PATIENCE = 25, 1000, 3
# Rows under which no flow is tried.
_LEAST_ROWS = 100

Fold = tuple[NDArray[np.float64], NDArray[np.float64]]
Candidate = tuple[str, int]


@dataclass(frozen=True)
class Choice:
    """What held-out rows have decided.

    Attributes
    ----------
    shrinkage : float
        Of correlations.
    scores : dict
        Mean log-likelihood per held-out row in nats, by the kind and the size of each candidate. Empty when there was
        too little to hold out.
    flow_steps : dict
        By the size of each flow, how many make as many passes over all rows as those after which held-out rows were
        the likeliest.
    """

    shrinkage: float
    scores: dict[Candidate, float]
    flow_steps: dict[int, int]

    @property
    def best(self) -> Candidate:
        """The likeliest candidate, and of several the first."""
        return max(self.scores, key=lambda candidate: self.scores[candidate]) if self.scores else ("spherical", 1)


def choose(values: NDArray[np.float64], groups: Sequence[str] | range, seed: int) -> Choice:
    """Hold out every third of the groups in turn, and judge candidates by rows (n, n_dim) that they have not seen."""
    n_folds = min(_FOLDS, len(set(groups)))
    if n_folds < 2 or len(values) < 2 * _FOLDS:
        return Choice(0.0, {}, {})
    splits = list(GroupKFold(n_folds, shuffle=True, random_state=seed).split(values, groups=list(groups)))
    raw = [(values[fitted], values[held_out]) for fitted, held_out in splits]
    shrinkage = max(SHRINKAGES, key=lambda each: _gaussian_score(raw, each))
    folds, log_volumes = [], []
    for fitted, held_out in raw:
        whitening = Whitening.fit(fitted, shrinkage)
        folds.append((whitening.whiten(fitted), whitening.whiten(held_out)))
        log_volumes.append(whitening.log_volume * len(held_out) / len(values))
    scores, flow_steps = _mixture_scores(folds, seed), {}
    for size in CANDIDATES.get(FLOW, ()) if min(len(fitted) for fitted, _ in folds) >= _LEAST_ROWS else ():
        steps, scores[FLOW, size] = _flow_score(size, folds, seed)
        flow_steps[size] = round(steps * n_folds / (n_folds - 1))
    # Of the values as they are, not of white ones, which each fold has of its own.
    return Choice(shrinkage, {each: score - sum(log_volumes) for each, score in scores.items()}, flow_steps)


def fit_mixture(covariance_type: str, n_components: int, seed: int, white: NDArray[np.float64]) -> GaussianMixture:
    """Return a fitted mixture."""
    # "k-means++" only chooses rows to start from; the k-means of the default adds up in threads' order.
    return GaussianMixture(
        n_components,
        covariance_type=covariance_type,
        reg_covar=_LEAST_VARIANCE,
        init_params="k-means++",
        random_state=seed,
    ).fit(white)


def _gaussian_score(raw: Sequence[Fold], shrinkage: float) -> float:
    """Return the log-likelihood of held-out rows, less what all shrinkages have in common."""
    total = 0.0
    for fitted, held_out in raw:
        whitening = Whitening.fit(fitted, shrinkage)
        total -= (whitening.whiten(held_out) ** 2).sum() / 2 + len(held_out) * whitening.log_volume
    return total


def _mixture_scores(folds: Sequence[Fold], seed: int) -> dict[Candidate, float]:
    scores: dict[Candidate, float] = {}
    for covariance_type in (each for each in CANDIDATES if each != FLOW):
        for n_components in CANDIDATES[covariance_type]:
            if n_components > min(len(fitted) for fitted, _ in folds):
                break
            score = _mean(
                [fit_mixture(covariance_type, n_components, seed, fitted).score_samples(rows) for fitted, rows in folds]
            )
            if covariance_type == "full" and score < scores.get((covariance_type, n_components // 2), score):
                break  # each has so many numbers that more of them only cost more time
            scores[covariance_type, n_components] = score
    return scores


def _flow_score(size: int, folds: Sequence[Fold], seed: int) -> tuple[int, float]:
    """Return after how many steps held-out rows are the likeliest, in all folds together, and how likely then."""
    trainings = [FlowTraining(fitted, size, seed) for fitted, _ in folds]
    best, score = 0, -np.inf
    for steps in range(_STEPS, _MOST_STEPS + 1, _STEPS):
        likelihoods = []
        for training, (_, rows) in zip(trainings, folds, strict=True):
            training.run(_STEPS)
            likelihoods.append(training.flow.log_likelihood(rows))
        now = _mean(likelihoods)
        if now > score:
            best, score = steps, now
        elif steps >= best + _PATIENCE * _STEPS:
            break
    return best, score


def _mean(likelihoods: Sequence[NDArray[np.float64]]) -> float:
    """Return the mean over all rows, each held out once."""
    return float(np.mean(np.concatenate(likelihoods)))
