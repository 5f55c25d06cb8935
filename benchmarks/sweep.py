"""Test error against the length of the latent vector, of the autoencoder and of PCA: a table and a curve.

Reads DVC's experiments on the present commit; make them first:

    dvc exp run --queue -S 'autoencoder.latent_space_dim=8,16,32,64'
    dvc queue start      # and wait until `dvc queue status` shows all four as a success
    python -m benchmarks.sweep docs/sweep.png
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_NAMES = ("autoencoder", "PCA", "mean of the training set")
_FIGURES = ("test_mse", "pca_test_mse", "mean_predictor_test_mse")


def read_experiments(shown: list[dict[str, Any]]) -> dict[int, tuple[float, ...]]:
    """Return the test errors of each length of the latent vector, from what `dvc exp show --json` prints."""
    found = {}
    for baseline in shown:
        for experiment in baseline.get("experiments") or []:
            for data in (state.get("data") for state in experiment.get("revs") or []):
                if not data:  # it has not run
                    continue
                params = data["params"]["params.yaml"]["data"]
                metrics = (data["metrics"].get("reports/evaluate/metrics.json") or {}).get("data")
                if metrics:
                    dim = int(params["autoencoder"]["latent_space_dim"])
                    found[dim] = tuple(float(metrics[name]) for name in _FIGURES)
    return dict(sorted(found.items()))


def table(errors: dict[int, tuple[float, ...]]) -> str:
    """Return the errors as a table in Markdown."""
    lines = [f"| latent_space_dim | {' | '.join(_NAMES)} |", "|---" * (1 + len(_NAMES)) + "|"]
    lines += [f"| {dim} | {' | '.join(f'{value:.5f}' for value in values)} |" for dim, values in errors.items()]
    return "\n".join(lines)


def draw(path: Path, errors: dict[int, tuple[float, ...]]) -> None:
    """Draw the errors of the autoencoder and of PCA."""
    figure = Figure(figsize=(6, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for column, marker in ((0, "o"), (1, "s")):
        axes.plot(list(errors), [values[column] for values in errors.values()], marker=marker, label=_NAMES[column])
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(errors), [str(dim) for dim in errors])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("latent_space_dim")
    axes.set_ylabel("mean squared error on the test set")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Software": None})


def main() -> None:
    """Print the table, and draw the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path, help="the PNG to draw")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "dvc", "exp", "show", "--json", "--no-pager"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    errors = read_experiments(json.loads(shown))
    if not errors:
        sys.exit("error: no DVC experiment on this commit has been evaluated; --help says how to make them")
    print(table(errors))
    draw(arguments.picture, errors)


if __name__ == "__main__":
    main()
