"""Training throughput: our step beside `keras.Model.fit` with Keras' defaults, and two workers beside one.

Same network, same data, same cores, each measurement in a process of its own, in alternating order; medians of samples
per second over `--repeats`. Repeat it after `dvc repro` with

    python -m benchmarks.training

`keras.Model.fit` trains the same network of Keras' own layers by Keras' own Adam, and gets the spectrograms as an array
in memory. Ours reads them from the mapped shards, in an order that follows from the seed, with deterministic
operations, as the train stage does.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.processes import start
from pipeline.params import PARAMS_FILE, read_params
from pipeline.paths import SPECTROGRAMS, TABLE
from training.params import Params

CONTENDERS = {
    "keras.Model.fit, one process": ("keras", 1),
    "ours, one process": ("ours", 1),
    "ours, two workers of half the cores": ("ours", 2),
}


def measure(arguments: argparse.Namespace) -> None:
    """Print the samples per second of one process; the first epoch, which builds the graph, does not count."""
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
            step = SynchronousStep(autoencoder.model, autoencoder.optimizer, strategy)

        def run_epoch(epoch: int) -> None:
            step.train_epoch(train.training_slices(epoch, 0, settings.global_batch_size, rank, workers))

    run_epoch(0)
    started = time.perf_counter()
    for epoch in range(1, 1 + arguments.epochs):
        run_epoch(epoch)
    print(json.dumps(n_rows * arguments.epochs / (time.perf_counter() - started)))


def of_keras_layers(model: Any) -> Any:
    """Return the same network, with Keras' layer in place of each of ours."""
    import keras

    def clone(layer: Any) -> Any:
        theirs = next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("keras."))
        return theirs.from_config(layer.get_config())

    return keras.models.clone_model(model, clone_function=clone, recursive=True)


def samples_per_s(kind: str, workers: int, arguments: argparse.Namespace) -> float:
    """Run one contender in processes of its own, and return what its first one measured."""
    command = ["benchmarks.training", "--measure", kind, "--cpus", str(max(1, arguments.cpus // workers))]
    for name in ("params", "spectrograms", "table", "epochs"):
        command += [f"--{name}", str(getattr(arguments, name))]
    children = start(command, workers)
    outputs = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit(f"a process of {kind!r} failed; run it by hand with --measure {kind}")
    return float(json.loads(outputs[0].splitlines()[-1]))


def main(arguments: argparse.Namespace) -> None:
    """Measure all contenders in alternating order, and print medians as a Markdown table."""
    results: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for repeat in range(arguments.repeats):
        for name in list(CONTENDERS)[:: 1 if repeat % 2 == 0 else -1]:
            results[name].append(samples_per_s(*CONTENDERS[name], arguments))
            print(f"{name}: {results[name][-1]:.0f} samples/s", file=sys.stderr, flush=True)
    first = next(iter(results.values()))
    print("| | samples/s | beside keras.Model.fit |\n|---|---|---|")
    for name, values in results.items():
        ratios = [value / other for value, other in zip(values, first, strict=True)]
        print(f"| {name} | {statistics.median(values):.0f} | {statistics.median(ratios):.2f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=PARAMS_FILE)
    parser.add_argument("--spectrograms", type=Path, default=SPECTROGRAMS)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--epochs", type=int, default=2, help="timed epochs of each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpus", type=int, default=os.cpu_count() or 1, help="cores of all processes together")
    parser.add_argument("--measure", choices=["keras", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--workers", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args()
    (measure if given.measure else main)(given)
