"""New codes from old ones: interpolations, arithmetic between labels, and a map of them all. NumPy and scikit-learn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from training.codes import Codes

_PERPLEXITY = 30.0


@dataclass(frozen=True)
class Move:
    """A clip, and the label that its sound is moved to.

    Attributes
    ----------
    row : int
        Of the clip.
    source, target : str
        Labels.
    """

    row: int
    source: str
    target: str


def interpolate(start: Codes, end: Codes, steps: int) -> Codes:
    """Return codes at equal steps from one to another, both included; of codes of one row each.

    Levels go along in dB.
    """
    share = np.linspace(0.0, 1.0, steps, dtype=np.float32)
    z = start.z + share[:, None] * (end.z - start.z)
    min_db, max_db = (a + share * (b - a) for a, b in ((start.min_db, end.min_db), (start.max_db, end.max_db)))
    return Codes(z, min_db, max_db)


def choose_pairs(n_rows: int, count: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Return pairs of different rows; none when there are no two."""
    if n_rows < 2:
        return []
    pairs = (rng.choice(n_rows, size=2, replace=False) for _ in range(count))
    return [(int(first), int(second)) for first, second in pairs]


def choose_moves(
    labels: Sequence[str | None], known: Sequence[str], count: int, rng: np.random.Generator
) -> list[Move]:
    """Return rows, each to be moved from its own label to another of those known; none when there are no two labels.

    Parameters
    ----------
    labels : sequence of str or None
        Of the rows.
    known : sequence of str
        Labels whose mean codes are known.
    count : int
    rng : Generator
    """
    rows = [row for row, label in enumerate(labels) if label in known]
    if len(known) < 2 or not rows:
        return []
    moves = []
    for _ in range(count):
        row = rows[int(rng.integers(len(rows)))]
        source = str(labels[row])
        others = [label for label in known if label != source]
        moves.append(Move(row, source, others[int(rng.integers(len(others)))]))
    return moves


def label_means(z: NDArray[np.float32], labels: Sequence[str | None]) -> dict[str, NDArray[np.float32]]:
    """Return the mean latent vector of each label, in the order of the alphabet."""
    each = np.array([label or "" for label in labels], dtype=np.str_)
    known = sorted({label for label in labels if label})
    return {label: z[each == label].mean(axis=0) for label in known}


def move(codes: Codes, moves: Sequence[Move], means: dict[str, NDArray[np.float32]]) -> Codes:
    """Return the codes of moved rows: `z - mean(source) + mean(target)`, at their own levels."""
    moved = codes.take(np.array([each.row for each in moves], dtype=np.int64))
    shift = [means[each.target] - means[each.source] for each in moves]
    return Codes(moved.z + np.array(shift, dtype=np.float32).reshape(moved.z.shape), moved.min_db, moved.max_db)


def map_codes(z: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Return points (n, 2) that are near each other where latent vectors are, by t-SNE, within the unit square."""
    if len(z) < 4:
        return np.full((len(z), 2), 0.5, dtype=np.float32) + np.linspace(-0.4, 0.4, len(z), dtype=np.float32)[:, None]
    perplexity = min(_PERPLEXITY, (len(z) - 1) / 3)
    with threadpool_limits(1):
        points = TSNE(perplexity=perplexity, init="pca", random_state=seed, n_jobs=1).fit_transform(z)
    low, high = points.min(axis=0), points.max(axis=0)
    return np.asarray((points - low) / np.where(high > low, high - low, 1.0), dtype=np.float32)
