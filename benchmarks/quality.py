"""What the default recipe reaches on the Free Spoken Digit Dataset in a given time, beside PCA and the mean.

    FSDD_DIR=/path/to/recordings python -m benchmarks.quality --minutes 2

Preprocesses the recordings with the parameters of `params.yaml`, holds out the usual test set (index 0 to 4), trains
with `resources.train_workers` processes until the time is over, and reads the test set once, with the best weights by
validation error at that time. The time counts from the first step to the end of the last epoch that fits.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.processes import start
from pipeline.corpus import Splitter
from pipeline.loader import Loader
from pipeline.normaliser import MinMaxNormaliser
from pipeline.padder import Padder
from pipeline.params import PARAMS_FILE, read_params
from pipeline.preprocessing import PreprocessingPipeline
from pipeline.spectrogram import LogSpectrogramExtractor
from pipeline.store import Saver, Store
from training.params import Params

TEST = r"_[0-4]\.wav$"


def work(arguments: argparse.Namespace) -> None:
    """Be one of the workers."""
    from training.loop import Job, run_worker

    params = read_params(Params, arguments.params)
    folder = arguments.work
    job = Job(
        str(folder / "spectrograms"),
        str(folder / "table.parquet"),
        str(folder / "checkpoints"),
        params.autoencoder,
        params.train,
        params.resources.cpus_per_worker,
    )
    run_worker(job, arguments.rank, arguments.workers)


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


def main(arguments: argparse.Namespace) -> None:
    """Train for the given time, judge, and print a Markdown table."""
    import numpy as np

    from training.checkpoint import Checkpoints
    from training.dataset import Spectrograms
    from training.metrics import LinearAutoencoder, mean_predictor, mean_squared_error

    corpus = os.environ.get("FSDD_DIR")
    if not corpus:
        raise SystemExit("FSDD_DIR must name the folder of the dataset's recordings")
    params = read_params(Params, arguments.params)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = preprocess(corpus, params, folder)
        train, test = Spectrograms(store, "train"), Spectrograms(store, "test")
        command = ["benchmarks.quality", "--params", str(arguments.params), "--work", name]
        children = start(command, params.resources.train_workers)
        checkpoints = Checkpoints(folder / "checkpoints")
        seconds, best = 0.0, None
        while any(child.poll() is None for child in children):
            time.sleep(0.2)
            history = checkpoints.progress().history
            if not history:
                continue
            # The first epoch's own length is what it trained on over how fast that was.
            first_s = len(train) // params.train.global_batch_size * params.train.global_batch_size
            elapsed_s = (history[-1].timestamp_ms - history[0].timestamp_ms) / 1000
            elapsed_s += first_s / history[0].samples_per_s
            if elapsed_s > 60 * arguments.minutes:
                break
            if best is None or len(history) > best[0]:
                best, seconds = (len(history), checkpoints.load_best()), elapsed_s
                print(f"{seconds:.0f} s: {history[-1]}", file=sys.stderr, flush=True)
        for child in children:
            child.kill()
            child.wait()
        if best is None:
            raise SystemExit("no epoch fits into the time, or the workers failed")
        x = test.rows(np.arange(len(test)))
        linear = LinearAutoencoder(train, params.autoencoder.latent_space_dim, params.train.seed)
        rows = {
            f"default recipe, {best[0]} epochs in {seconds:.0f} s": best[1].reconstruct(x)[0],
            f"PCA, {linear.n_components} components": linear.reconstruct(x),
            "mean of the training set": np.broadcast_to(mean_predictor(train), x.shape),
        }
        print(f"| on {len(test)} test recordings | MSE |\n|---|---|")
        for title, x_hat in rows.items():
            print(f"| {title} | {mean_squared_error(x, x_hat).mean():.5f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    (work if given.work else main)(given)
