"""Training throughput: our step beside `keras.Model.fit` with Keras' defaults, and two workers beside one.

Same network, same data, same cores, each measurement in a process of its own, in alternating order; medians of samples
per second over `--repeats`. Repeat it after `dvc repro` with

    python -m benchmarks.training

`keras.Model.fit` trains the same network of Keras' own layers by Keras' own Adam, and gets the spectrograms as an array
in memory. Ours reads them from the mapped shards, in an order that follows from the seed, with deterministic
operations, as the train stage does. Where there are GPUs, every process has one, and how busy they were while
the clock ran (`nvidia-smi`) stands beside.

    python -m benchmarks.training --seed-minutes 15

trains the preset `seed` for so long, then the preset `laptop` until its validation error is as good as the best of
those, and prints how much sooner that is.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.processes import start
from benchmarks.recipes import Recipe, write_params
from pipeline.params import PARAMS_FILE, read_params
from pipeline.paths import SPECTROGRAMS, TABLE
from training.params import Params

CONTENDERS = {
    "keras.Model.fit, one process": ("keras", 1),
    "ours, one process": ("ours", 1),
    "ours, one process, not compiled by XLA": ("uncompiled", 1),
    "ours, one process, products in bfloat16": ("bfloat16", 1),
    "ours, two workers of half the cores": ("ours", 2),
}


def measure(arguments: argparse.Namespace) -> None:
    """Print what one process measures; the first epoch, which builds the graph, does not count."""
    import keras
    import numpy as np
    import tensorflow as tf

    from training.autoencoder import Autoencoder
    from training.dataset import load_spectrograms
    from training.loop import join
    from training.step import SynchronousStep

    params = read_params(Params, arguments.params)
    train = load_spectrograms(arguments.spectrograms, arguments.table, "train")
    settings, rank, workers = params.train, arguments.rank, arguments.workers
    if arguments.batch_size:
        settings = settings.model_copy(update={"global_batch_size": arguments.batch_size})
    n_rows = len(train) // settings.global_batch_size * settings.global_batch_size
    if arguments.measure == "keras":
        tf.config.threading.set_intra_op_parallelism_threads(arguments.cpus)
        tf.config.threading.set_inter_op_parallelism_threads(arguments.cpus)
        model = of_keras_layers(Autoencoder(train.shape, **params.autoencoder.model_dump()).model)
        model.compile(optimizer=keras.optimizers.Adam(settings.learning_rate), loss="mse")
        x = train.rows(np.arange(n_rows))
        run_epoch: Any = lambda _: model.fit(x, x, batch_size=settings.global_batch_size, verbose=0)  # noqa: E731
    else:
        strategy = join(settings.seed, arguments.cpus, workers)
        with strategy.scope():
            autoencoder = Autoencoder(train.shape, **params.autoencoder.model_dump())
            autoencoder.compile(settings.learning_rate)
            step = SynchronousStep(
                autoencoder.model,
                autoencoder.optimizer,
                strategy,
                compiled=False if arguments.measure == "uncompiled" else None,
                precision="bfloat16" if arguments.measure == "bfloat16" else "float32",
            )

        def run_epoch(epoch: int) -> None:
            step.train_epoch(train.training_slices(epoch, 0, settings.global_batch_size, rank, workers))

    run_epoch(0)
    watch = watch_gpu(rank)
    started = time.perf_counter()
    for epoch in range(1, 1 + arguments.epochs):
        run_epoch(epoch)
    rate = n_rows * arguments.epochs / (time.perf_counter() - started)
    print(json.dumps([rate, mean_utilisation(watch)]))


def n_gpus() -> int:
    """Return how many GPUs this machine has."""
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    return len(listed.stdout.splitlines()) if listed.returncode == 0 else 0


def watch_gpu(number: int) -> subprocess.Popen[str] | None:
    """Start to write down how busy a GPU is; None where there is none."""
    if number >= n_gpus():
        return None
    query = ["nvidia-smi", f"--id={number}", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    return subprocess.Popen([*query, "--loop-ms=100"], stdout=subprocess.PIPE, text=True)


def mean_utilisation(watch: subprocess.Popen[str] | None) -> float | None:
    """Return the mean of what was written down, in per cent."""
    if watch is None:
        return None
    watch.terminate()
    values = [float(line) for line in watch.communicate()[0].split() if line.isdigit()]
    return statistics.fmean(values) if values else None


def of_keras_layers(model: Any) -> Any:
    """Return the same network, with Keras' layer in place of each of ours."""
    import keras

    def clone(layer: Any) -> Any:
        theirs: Any = next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("keras."))
        return theirs.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=clone, recursive=True)


def measure_apart(kind: str, workers: int, arguments: argparse.Namespace) -> list[float | None]:
    """Run one contender in processes of its own, and return what its first one measured."""
    command = ["benchmarks.training", "--measure", kind, "--cpus", str(max(1, arguments.cpus // workers))]
    for name in ("params", "spectrograms", "table", "epochs"):
        command += [f"--{name}", str(getattr(arguments, name))]
    if arguments.batch_size:
        command += ["--batch-size", str(arguments.batch_size)]
    children = start(command, workers, arguments.pinned)
    outputs = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit(f"a process of {kind!r} failed; run it by hand with --measure {kind}")
    found: list[float | None] = json.loads(outputs[0].splitlines()[-1])
    return found


def compare_rates(arguments: argparse.Namespace) -> None:
    """Measure all contenders in alternating order, and print medians as a Markdown table."""
    gpus = n_gpus()
    contenders = {name: each for name, each in CONTENDERS.items() if not gpus or each[1] <= gpus}
    results: dict[str, list[list[Any]]] = {name: [] for name in contenders}
    for repeat in range(arguments.repeats):
        for name in list(contenders)[:: 1 if repeat % 2 == 0 else -1]:
            results[name].append(measure_apart(*contenders[name], arguments))
            print(f"{name}: {results[name][-1][0]:.0f} samples/s", file=sys.stderr, flush=True)
    first = next(iter(results.values()))
    print("| | samples/s | beside keras.Model.fit |" + (" GPU busy (%) |" if gpus else ""))
    print("|---|---|---|" + ("---|" if gpus else ""))
    for name, values in results.items():
        ratios = [value[0] / other[0] for value, other in zip(values, first, strict=True)]
        busy = [value[1] for value in values if value[1] is not None]
        print(
            f"| {name} | {statistics.median(value[0] for value in values):.0f} | {statistics.median(ratios):.2f} |",
            end="",
        )
        print(f" {statistics.median(busy):.0f} |" if busy else "")


def compare_times(arguments: argparse.Namespace) -> None:
    """Print when the seed's configuration had its best validation error, and when the default one had as good a one."""
    with tempfile.TemporaryDirectory() as name:
        seed, laptop = (
            Recipe(
                write_params(arguments.params, each, Path(name, each), arguments.share),
                arguments.spectrograms,
                arguments.table,
            )
            for each in ("seed", "laptop")
        )
        epochs: list[tuple[float, float]] = []
        for epochs, _ in seed.follow(60 * arguments.seed_minutes):
            print(f"seed: {epochs[-1][0]:.0f} s: validation {epochs[-1][1]:.6f}", file=sys.stderr, flush=True)
        if not epochs:
            raise SystemExit(f"--seed-minutes {arguments.seed_minutes:g} is too little for an epoch of the preset seed")
        seed_s, error = min(epochs, key=lambda epoch: epoch[1])
        print(f"seed: {error:.6f} after {seed_s:.0f} s, the best of {len(epochs)} epochs")
        for epochs, _ in laptop.follow(60 * arguments.seed_minutes):
            reached = [epoch for epoch in epochs if epoch[1] <= error]
            if reached:
                laptop_s, found = reached[0]
                print(f"laptop: {found:.6f} after {laptop_s:.1f} s and {epochs.index(reached[0]) + 1} epochs")
                print(f"ratio: {seed_s / laptop_s:.1f} times sooner")
                return
        print("laptop: nothing as good")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--spectrograms", type=Path, default=SPECTROGRAMS)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--epochs", type=int, default=2, help="timed epochs of each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpus", type=int, default=os.cpu_count() or 1, help="cores of all processes together")
    parser.add_argument("--batch-size", type=int, help="over all workers, instead of that of the parameters")
    parser.add_argument("--pinned", action="store_true", help="each process to a core of its own; Linux only")
    parser.add_argument(
        "--share", type=int, metavar="WORKERS", help="of both, which share the cores; by default a preset's"
    )
    parser.add_argument("--measure", choices=["keras", "ours", "uncompiled", "bfloat16"], help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--seed-minutes", type=float, help="compare times to an error instead, see above")
    given = parser.parse_args()
    if given.measure:
        measure(given)
    else:
        (compare_times if given.seed_minutes else compare_rates)(given)
