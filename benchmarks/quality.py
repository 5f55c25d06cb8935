"""Test error against training time on the Free Spoken Digit Dataset: presets beside PCA and the mean, in one run.

    FSDD_DIR=/path/to/recordings python -m benchmarks.quality --minutes 1 2 5 --presets laptop seed --latent 128

Preprocesses the recordings with the parameters of `params.yaml`, and holds out the usual test set (index 0 to 4). Each
preset trains with `resources.train_workers` processes, one preset after the other, until the longest time is over or it
is finished; the test set is read once for each time, with the weights that had the best validation error by then. Time
counts from when the workers have imported TensorFlow: what they compute to start from counts.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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

if TYPE_CHECKING:
    from training.autoencoder import Autoencoder

TEST = r"_[0-4]\.wav$"


def work(arguments: argparse.Namespace) -> None:
    """Be one of the workers."""
    from training.loop import Job, run_worker

    params = read_params(Params, arguments.params)
    folder = arguments.work
    if arguments.rank == 0:
        (folder / "started").write_text(str(time.time()), encoding="utf-8")
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


def train(
    params: Params, params_path: Path, folder: Path, minutes: Sequence[float]
) -> dict[float, tuple[int, "Autoencoder"] | None]:
    """Return for each time the number of epochs and the best autoencoder that it sufficed for."""
    from training.checkpoint import Checkpoints

    command = ["benchmarks.quality", "--params", str(params_path), "--work", str(folder)]
    children = start(command, params.worker_counts[-1])
    checkpoints = Checkpoints(folder / "checkpoints")
    found: dict[float, tuple[int, Autoencoder] | None] = dict.fromkeys(minutes)
    elapsed_s, running = 0.0, True
    while running and elapsed_s <= 60 * max(minutes):
        running = any(child.poll() is None for child in children)
        time.sleep(0.2)
        if not (history := checkpoints.progress().history):
            continue
        elapsed_s = history[-1].timestamp_ms / 1000 - float((folder / "started").read_text(encoding="utf-8"))
        due = [each for each in minutes if elapsed_s <= 60 * each and (found[each] or (0,))[0] < len(history)]
        if due:
            found |= dict.fromkeys(due, (len(history), checkpoints.load_best()))
            print(f"{elapsed_s:.0f} s: {history[-1]}", file=sys.stderr, flush=True)
    for child in children:
        child.kill()
        child.wait()
    return found


def main(arguments: argparse.Namespace) -> None:
    """Train each preset, judge, and print a Markdown table."""
    from training.dataset import Spectrograms
    from training.metrics import LinearAutoencoder, mean_predictor, mean_squared_error

    corpus = os.environ.get("FSDD_DIR")
    if not corpus:
        raise SystemExit("FSDD_DIR must name the folder of the dataset's recordings")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = preprocess(corpus, read_params(Params, arguments.params), folder)
        test = Spectrograms(store, "test")
        x = test.rows(np.arange(len(test)))

        def judge(x_hat: NDArray[np.float32]) -> str:
            return f"{mean_squared_error(x, x_hat).mean():.5f}"

        print(f"| {len(test)} test recordings, {arguments.latent} latent values |", end="")
        print("".join(f" {each:g} min |" for each in arguments.minutes))
        print("|---|" + "---|" * len(arguments.minutes))
        for preset in arguments.presets:
            place = folder / preset
            path = write_params(arguments, preset, place)
            for each in ("spectrograms", "table.parquet"):
                (place / each).symlink_to(folder / each)
            found = train(read_params(Params, path), path, place, arguments.minutes)
            cells = [
                f"{judge(best[1].reconstruct(x)[0])} ({best[0]} epochs)" if best else "" for best in found.values()
            ]
            print(f"| {preset} | {' | '.join(cells)} |", flush=True)
        linear = LinearAutoencoder(Spectrograms(store, "train"), arguments.latent, 0)
        print(f"| PCA | {judge(linear.reconstruct(x))} |")
        mean = mean_predictor(Spectrograms(store, "train"))
        print(f"| mean of the training set | {judge(np.broadcast_to(mean, x.shape))} |")


def write_params(arguments: argparse.Namespace, preset: str, folder: Path) -> Path:
    """Write the parameters of a preset, with another size of the latent vector, into a folder."""
    from ruamel.yaml import YAML

    from training.preset import PRESETS, apply

    folder.mkdir()
    path = folder / PARAMS_FILE.name
    shutil.copy(arguments.params, path)
    apply(PRESETS / f"{preset}.yaml", path)
    yaml = YAML(typ="safe", pure=True)
    content = yaml.load(path.read_text(encoding="utf-8"))
    content["autoencoder"]["latent_space_dim"] = arguments.latent
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1.0, 2.0, 5.0])
    parser.add_argument("--presets", nargs="+", default=["laptop", "seed"])
    parser.add_argument("--latent", type=int, default=128)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    (work if given.work else main)(given)
