"""Likelihood of the latent codes of test clips, by the density fitted to those of the training set; after `dvc repro`.

Each family's best candidate is the one that rows held out of the training set are likeliest in; the test clips, which
nothing was chosen by, say whether that holds. Run in the project's folder: `python -m benchmarks.densities`.
"""

import argparse
import time
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from pipeline.params import PARAMS_FILE, read_params
from training import candidates
from training.codes import FITTED_ROWS, Codes, choose_rows, encode
from training.density import Density
from training.params import Params
from training.trained import Trained

FAMILIES = {
    "Gaussian": {"spherical": (1,), "diag": (1,), "tied": (1,)},
    "mixture": {
        kind: tuple(size for size in sizes if size > 1)
        for kind, sizes in candidates.CANDIDATES.items()
        if kind != candidates.FLOW
    },
    "flow": {candidates.FLOW: candidates.CANDIDATES[candidates.FLOW]},
}


def fit(codes: Codes, groups: list[str], family: str, seed: int) -> tuple[Density, float]:
    """Return the density of one family, and the seconds of a processor that it took."""
    start = time.process_time()
    with mock.patch.object(candidates, "CANDIDATES", FAMILIES[family]):
        density = Density.fit(codes.z, codes.min_db, codes.max_db, seed, groups)
    return density, time.process_time() - start


def interval(values: NDArray[np.float64]) -> float:
    """Return twice the standard error of a mean."""
    return float(2 * values.std(ddof=1) / np.sqrt(len(values)))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    trained = Trained.load(read_params(Params, Path(PARAMS_FILE)))
    rows = choose_rows(len(trained.train), FITTED_ROWS, seed)
    groups = [trained.train.groups[row] for row in rows]
    train, test = (
        encode(trained.sound.autoencoder, trained.train, rows),
        encode(trained.sound.autoencoder, trained.test),
    )
    print(f"{len(train)} training and {len(test)} test codes of {train.z.shape[1]} values; nats per clip")
    first = None
    for family in FAMILIES:
        density, seconds = fit(train, groups, family, seed)
        likelihood = density.log_likelihood(test)
        first = likelihood if first is None else first
        more = likelihood - first
        print(
            f"{family:9} {density.describe():52} held out {density.held_out_log_likelihood:7.1f}   test "
            f"{likelihood.mean():7.1f}, {more.mean():+.1f} +- {interval(more):.1f} beside Gaussian   {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
