"""Test error against training time: presets beside PCA and the mean, in one run, for each length of the latent vector.

    FSDD_DIR=/path/to/recordings python -m benchmarks.quality --minutes 1 2 5 --presets laptop seed --latent 16 32 128
    python -m benchmarks.quality --stored --latent 128         # of the corpus that `dvc repro` has prepared

Preprocesses the recordings of the Free Spoken Digit Dataset with the parameters of `params.yaml`, and holds out the
usual test set (index 0 to 4); or takes the spectrograms that lie in `data/`, with their split. Each preset trains with
`resources.train_workers` processes, one preset after the other, until the longest time is over or it is finished; the
test set is read once for each time, with the weights that had the best validation error by then. Time counts from when
the workers have imported TensorFlow: what they compute to start from counts.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from benchmarks.recipes import Recipe, write_params
from pipeline.corpus import Splitter
from pipeline.errors import ModelError
from pipeline.loader import Loader
from pipeline.normaliser import MinMaxNormaliser
from pipeline.padder import Padder
from pipeline.params import PARAMS_FILE, read_params
from pipeline.paths import SPECTROGRAMS, TABLE
from pipeline.preprocessing import PreprocessingPipeline
from pipeline.spectrogram import LogSpectrogramExtractor
from pipeline.store import Saver, Store
from training.params import Params

if TYPE_CHECKING:
    from training.autoencoder import Autoencoder

TEST = r"_[0-4]\.wav$"


def preprocess(corpus: str, params: Params, folder: Path) -> Store:
    """Make the store that the workers train on."""
    wanted = params.preprocess
    saver = Saver(folder / "spectrograms", folder / "table.parquet")
    PreprocessingPipeline(
        Loader(wanted.sample_rate, wanted.duration_s, wanted.mono),
        Padder(),
        LogSpectrogramExtractor(
            wanted.n_fft, wanted.hop_length, wanted.drop_nyquist, wanted.ref, wanted.amin, wanted.top_db
        ),
        MinMaxNormaliser(*wanted.range),
        saver,
        Splitter(label=r"^(?P<label>\d)_", test=TEST, seed=params.split.seed),
    ).preprocess(corpus)
    return Store(saver.folder, saver.table_path)


def open_store(arguments: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """Return where spectrograms and table are; those of the digits are made in a folder."""
    if arguments.stored:
        return SPECTROGRAMS, TABLE
    corpus = os.environ.get("FSDD_DIR")
    if not corpus:
        raise SystemExit("FSDD_DIR must name the folder of the dataset's recordings; or say --stored")
    preprocess(corpus, read_params(Params, arguments.params), folder)
    return folder / "spectrograms", folder / "table.parquet"


def train(recipe: Recipe, minutes: list[float]) -> dict[float, tuple[int, "Autoencoder"]]:
    """Return for each time that sufficed for an epoch how many epochs it did for, and the best autoencoder by then."""
    found: dict[float, tuple[int, Autoencoder]] = {}
    for epochs, checkpoints in recipe.follow(60 * max(minutes)):
        elapsed_s, error = epochs[-1]
        due = [each for each in minutes if elapsed_s <= 60 * each]
        # The next epoch may have superseded it meanwhile, and is looked at in its turn.
        with contextlib.suppress(ModelError):
            found |= dict.fromkeys(due, (len(epochs), checkpoints.load_best()))
        print(f"{elapsed_s:.0f} s: epoch {len(epochs)}, validation {error:.6f}", file=sys.stderr, flush=True)
    return found


def compare(arguments: argparse.Namespace, latent: int, store: tuple[Path, Path], folder: Path) -> None:
    """Train each preset with a length of the latent vector, judge, and print a Markdown table."""
    from training.dataset import Spectrograms
    from training.metrics import LinearAutoencoder, mean_predictor, mean_squared_error

    shape = read_params(Params, arguments.params).train.target_shape
    learnt, test = Spectrograms(Store(*store), "train", shape), Spectrograms(Store(*store), "test", shape)
    x = test.rows(np.arange(len(test)))

    def judge(x_hat: NDArray[np.float32]) -> str:
        return f"{mean_squared_error(x, x_hat).mean():.5f}"

    print(f"\n| {len(test)} held-out recordings, {latent} latent values |", end="")
    print("".join(f" {each:g} min |" for each in arguments.minutes))
    print("|---|" + "---|" * len(arguments.minutes))
    for preset in arguments.presets:
        path = write_params(
            arguments.params, preset, folder / f"{preset}-{latent}", arguments.workers, latent_space_dim=latent
        )
        found = train(Recipe(path, *store), arguments.minutes)
        cells = [
            f"{judge(best[1].reconstruct(x)[0])} ({best[0]} epochs)" if (best := found.get(each)) else ""
            for each in arguments.minutes
        ]
        print(f"| {preset} | {' | '.join(cells)} |", flush=True)
    started = time.perf_counter()
    linear = LinearAutoencoder(learnt, latent, 0)
    print(f"| PCA, fitted in {time.perf_counter() - started:.0f} s | {judge(linear.reconstruct(x))} |")
    print(f"| mean of the training set | {judge(np.broadcast_to(mean_predictor(learnt), x.shape))} |", flush=True)


def main(arguments: argparse.Namespace) -> None:
    """Print a table for each length of the latent vector."""
    with tempfile.TemporaryDirectory() as name:
        store = open_store(arguments, Path(name))
        for latent in arguments.latent:
            compare(arguments, latent, store, Path(name))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 2.0, 5.0])
    parser.add_argument("--presets", nargs="+", default=["laptop", "seed"])
    parser.add_argument("--latent", type=int, nargs="+", default=[128])
    parser.add_argument("--workers", type=int, help="that share the machine's cores; by default a preset's")
    parser.add_argument("--stored", action="store_true", help="the spectrograms in data/ instead of the digits")
    main(parser.parse_args())
