"""Trainings of presets in processes of their own, followed by their checkpoints, without Ray, DVC or MLflow."""

import argparse
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.processes import start
from pipeline.params import PARAMS_FILE, read_params
from training.params import Params

if TYPE_CHECKING:
    from training.checkpoint import Checkpoints


@dataclass(frozen=True)
class Recipe:
    """A preset's training on a store.

    Attributes
    ----------
    params : Path
        As `write_params` made it.
    spectrograms, table : Path
        The store.
    """

    params: Path
    spectrograms: Path
    table: Path

    def follow(self, limit_s: float) -> Iterator[tuple[list[tuple[float, float]], "Checkpoints"]]:
        """Train with `resources.train_workers` processes, until it is finished or the time is over.

        Time counts from when the workers have imported TensorFlow: what they compute to start from counts.

        Yields
        ------
        epochs : list of (float, float)
            When each ended, in seconds, and its validation error.
        checkpoints : Checkpoints
            As they are then.
        """
        from training.checkpoint import Checkpoints

        folder, began, seen = self.params.parent, time.time(), 0
        workers = read_params(Params, self.params).worker_counts[-1]
        places = [str(each.absolute()) for each in (self.params, self.spectrograms, self.table)]
        children = start(["benchmarks.recipes", *places], workers)
        checkpoints = Checkpoints(folder / "checkpoints")
        running = True
        try:
            while running and time.time() - began <= limit_s:
                running = any(child.poll() is None for child in children)
                time.sleep(0.2)
                began = _started(folder) or time.time()
                history = checkpoints.progress().history
                epochs = [(each.timestamp_ms / 1000 - began, each.val_mse) for each in history]
                if len(epochs) > seen and epochs[-1][0] <= limit_s:
                    seen = len(epochs)
                    yield epochs, checkpoints
            if not running and any(child.returncode for child in children):
                raise SystemExit(f"a worker failed; see it by hand: python -m benchmarks.recipes {' '.join(places)}")
        finally:
            for child in children:
                child.kill()
                child.wait()


def write_params(params: Path, preset: str, folder: Path, workers: int | None = None, **autoencoder: Any) -> Path:
    """Write the parameters of a preset, with some of its network changed, into a new folder.

    With a number of workers, these share the machine's cores; otherwise they are the preset's.
    """
    from ruamel.yaml import YAML

    from training.preset import PRESETS, apply

    folder.mkdir(parents=True)
    path = folder / PARAMS_FILE.name
    shutil.copy(params, path)
    apply(PRESETS / f"{preset}.yaml", path)
    yaml = YAML(typ="safe", pure=True)
    content = yaml.load(path.read_text(encoding="utf-8"))
    content["autoencoder"].update(autoencoder)
    if workers is not None:
        content["resources"] |= {"train_workers": workers, "cpus_per_worker": max(1, (os.cpu_count() or 1) // workers)}
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)
    return path


def _started(folder: Path) -> float | None:
    """Return when the workers began; None while they import."""
    path = folder / "started"
    return float(path.read_text(encoding="utf-8")) if path.exists() else None


def work(arguments: argparse.Namespace) -> None:
    """Be one of the workers."""
    from training.loop import Job, run_worker

    params = read_params(Params, arguments.params)
    folder = arguments.params.parent
    if arguments.rank == 0:
        partial = folder / "started.partial"
        partial.write_text(str(time.time()), encoding="utf-8")
        partial.replace(folder / "started")
    job = Job(
        str(arguments.spectrograms),
        str(arguments.table),
        str(folder / "checkpoints"),
        params.autoencoder,
        params.train,
        params.resources.cpus_per_worker,
    )
    run_worker(job, arguments.rank, arguments.workers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("params", "spectrograms", "table"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    work(parser.parse_args())
