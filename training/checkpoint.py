"""Checkpoints of one training, under its key: whole or absent, and enough to go on as if nothing had happened.

A training's folder holds `epoch-00012/` (weights, optimizer, progress) and `best-00009/` (weights). A folder gets
its name only when it is whole; the newest `epoch-*` names the `best-*` that belongs to it.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from pipeline.errors import ModelError
from training.autoencoder import Autoencoder
from training.progress import Epoch, Progress

FORMAT_VERSION = 1


class Checkpoints:
    """The checkpoints of one training.

    Parameters
    ----------
    folder : path-like
        Of this training alone; every worker that writes or resumes must see it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def save(self, autoencoder: Autoencoder, progress: Progress) -> None:
        """Write the state after the last epoch, and remove what it supersedes."""
        current = f"epoch-{progress.epoch:05d}"
        best = f"best-{progress.best.epoch:05d}"
        if progress.best.epoch == progress.epoch:
            self._publish(best, autoencoder.save)
        self._publish(current, lambda path: _write_state(path, autoencoder, progress))
        for path in self.folder.iterdir():
            if path.name not in {current, best}:
                shutil.rmtree(path)

    def progress(self) -> Progress:
        """Return how far the training is; no history when it has not finished an epoch."""
        latest = self._latest()
        while latest is not None:
            try:
                return _read_progress(latest)
            except ModelError:
                # A worker may have superseded and removed it since it was listed.
                newer = self._latest()
                if newer == latest:
                    raise
                latest = newer
        return Progress()

    def resume(self, autoencoder: Autoencoder) -> Progress:
        """Take weights and optimizer state of the newest checkpoint, if there is one, and return how far it is."""
        latest = self._latest()
        if latest is None:
            return Progress()
        autoencoder.load_weights(latest)
        _load_optimizer(latest / "optimizer.npz", autoencoder)
        return _read_progress(latest)

    def load_best(self) -> Autoencoder:
        """Return the autoencoder of the best epoch so far."""
        return Autoencoder.load(self.folder / f"best-{self.progress().best.epoch:05d}")

    def load_newest(self) -> Autoencoder:
        """Return the autoencoder of the last epoch, as it is then.

        Raises
        ------
        ModelError
            There is none yet, or a worker superseded and removed it meanwhile.
        """
        latest = self._latest()
        if latest is None:
            raise ModelError(f"{self.folder}: holds no checkpoint")
        return Autoencoder.load(latest)

    def remove(self) -> None:
        """Remove all of them: the training is finished and its results are elsewhere."""
        # Away in one step, since half of them would read as damaged.
        removed = self.folder.with_name(f".{self.folder.name}.removed")
        shutil.rmtree(removed, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def _latest(self) -> Path | None:
        return max(self.folder.glob("epoch-*"), default=None, key=lambda path: path.name)

    def _publish(self, name: str, write: Callable[[Path], None]) -> None:
        """Write a folder under another name, and give it its own when it is whole."""
        partial = self.folder / f".{name}.partial"
        target = self.folder / name
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)


def _write_state(folder: Path, autoencoder: Autoencoder, progress: Progress) -> None:
    """Write weights, optimizer and progress."""
    autoencoder.save(folder)
    assert autoencoder.optimizer is not None
    variables: dict[str, np.ndarray] = {}
    autoencoder.optimizer.save_own_variables(variables)
    np.savez(folder / "optimizer.npz", allow_pickle=False, **variables)
    content = {"format_version": FORMAT_VERSION, "history": [asdict(epoch) for epoch in progress.history]}
    (folder / "progress.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _load_optimizer(path: Path, autoencoder: Autoencoder) -> None:
    """Take the state of the optimizer, which Keras would skip with a warning if it were another optimizer's."""
    assert autoencoder.optimizer is not None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            state = dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: cannot be read: {error}; remove {path.parents[1]} to start afresh") from error
    expected = len(autoencoder.optimizer.variables)
    if len(state) != expected:
        raise ModelError(f"{path}: holds {len(state)} arrays, expected {expected} of this optimizer")
    autoencoder.optimizer.load_own_variables(state)


def _read_progress(folder: Path) -> Progress:
    """Return what `_write_state` wrote of the epochs."""
    path = folder / "progress.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format_version"] != FORMAT_VERSION:
            raise ModelError(f"{path}: format_version is {content['format_version']!r}, expected {FORMAT_VERSION}")
        return Progress(tuple(Epoch(**epoch) for epoch in content["history"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: cannot be read: {error}; remove {folder.parent} to start afresh") from error
