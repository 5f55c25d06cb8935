"""Checkpoints of one training, under its key: whole or absent, and enough to go on as if nothing had happened.

A training's folder, or its prefix in a bucket, holds `epoch-00012/` (weights, optimizer, progress) and `best-00009/`
(weights), each whole or absent; the newest `epoch-*` names the `best-*` that belongs to it. What was saved within the
epoch that follows the twelfth is called `epoch-00012-step-00000345/`. Beside the folder stands who may write into it.
"""

import contextlib
import os
import secrets
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import ModelError
from pipeline.storage import Storage
from training.autoencoder import Autoencoder
from training.folders import open_folders
from training.progress import Progress

_PROGRESS_FILE = "progress.json"
# Beside the checkpoints: the mark of the process that claimed them last.
OWNER, _OWNER_FILE = ".owner", "owner"


class Checkpoints:
    """The checkpoints of one training.

    Parameters
    ----------
    location : path-like
        Folder, or prefix of a bucket, of this training alone; every worker that writes or resumes must reach it.
    """

    def __init__(self, location: str | os.PathLike[str]) -> None:
        self._folders = open_folders(location)
        self._mark: bytes | None = None

    @property
    def location(self) -> str:
        """Where they are, for any machine."""
        return self._folders.storage.location

    @property
    def poll_s(self) -> float:
        """How often one may ask for progress, in seconds."""
        return self._folders.storage.poll_s

    def beside(self, suffix: str) -> Storage:
        """Return the storage next to them whose name has a suffix, for what else workers of this training share."""
        return self._folders.storage.beside(suffix)

    def claim(self) -> None:
        """Take them over: who has claimed them before, and saves once more, fails.

        A driver or a node that dies may leave a worker behind that is only slow to end.
        """
        self._mark = secrets.token_bytes(16)
        self.beside(OWNER).put(_OWNER_FILE, [self._mark])

    def save(self, autoencoder: Autoencoder, progress: Progress) -> None:
        """Write the state after the last epoch, or within the one that has begun, and remove what it supersedes.

        Raises
        ------
        ModelError
            Another process has claimed them since this one did.
        """
        current = f"epoch-{progress.epoch:05d}"
        if progress.begun:
            # Behind the epoch's own in the order of names.
            current += f"-step-{progress.begun.steps:08d}"
        kept = {current}
        if progress.history:
            best = f"best-{progress.best.epoch:05d}"
            kept.add(best)
            if progress.best.epoch == progress.epoch and not progress.begun:
                self._folders.publish(best, autoencoder.save, self._confirm)
        self._folders.publish(current, lambda path: _write_state(path, autoencoder, progress), self._confirm)
        self._folders.keep(kept)

    def progress(self) -> Progress:
        """Return how far the training is."""
        latest = self._latest()
        while latest is not None:
            try:
                return self._read_progress(latest)
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
        with self._opened(latest) as folder:
            autoencoder.load_weights(folder)
            _load_optimizer(folder / "optimizer.npz", autoencoder, self.location)
        return self._read_progress(latest)

    def load_best(self) -> Autoencoder:
        """Return the autoencoder of the best epoch so far."""
        with self._opened(f"best-{self.progress().best.epoch:05d}") as folder:
            return Autoencoder.load(folder)

    def load_newest(self) -> Autoencoder:
        """Return the autoencoder of the last epoch, as it is then.

        Raises
        ------
        ModelError
            There is none yet, or a worker superseded and removed it meanwhile.
        """
        latest = self._latest()
        if latest is None:
            raise ModelError(f"{self.location}: holds no checkpoint")
        with self._opened(latest) as folder:
            return Autoencoder.load(folder)

    def remove(self) -> None:
        """Remove all of them: the training is finished and its results are elsewhere."""
        self._folders.clear()

    def _confirm(self) -> None:
        """Refuse to go on when another process has taken over."""
        if self._mark is None:
            return
        try:
            found = self.beside(OWNER).get(_OWNER_FILE)
        except FileNotFoundError:  # the training has ended
            found = b""
        if found != self._mark:
            raise ModelError(f"{self.location}: another process goes on with this training")

    def _latest(self) -> str | None:
        # Twice where there seems to be none: a list that is read while one supersedes another may lack both.
        return self._list_latest() or self._list_latest()

    def _list_latest(self) -> str | None:
        return max((name for name in self._folders.names() if name.startswith("epoch-")), default=None)

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[Path]:
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(self._folders.opened(name))
            except FileNotFoundError as error:
                raise ModelError(f"{self.location}: holds no {name} any more") from error
            yield folder

    def _read_progress(self, name: str) -> Progress:
        """Return what `_write_state` wrote of the epochs."""
        path = f"{self.location}/{name}/{_PROGRESS_FILE}"
        try:
            return Progress.from_json(self._folders.read(name, _PROGRESS_FILE))
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{path}: cannot be read: {error}; remove {self.location} to start afresh") from error


def _write_state(folder: Path, autoencoder: Autoencoder, progress: Progress) -> None:
    """Write weights, optimizer and progress."""
    autoencoder.save(folder)
    assert autoencoder.optimizer is not None
    variables: dict[str, np.ndarray] = {}
    autoencoder.optimizer.save_own_variables(variables)
    np.savez(folder / "optimizer.npz", allow_pickle=False, **variables)
    (folder / _PROGRESS_FILE).write_text(progress.to_json(), encoding="utf-8")


def _load_optimizer(path: Path, autoencoder: Autoencoder, location: str) -> None:
    """Take the state of the optimizer, which Keras would skip with a warning if it were another optimizer's."""
    assert autoencoder.optimizer is not None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            state = dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: cannot be read: {error}; remove {location} to start afresh") from error
    expected = len(autoencoder.optimizer.variables)
    if len(state) != expected:
        raise ModelError(f"{path}: holds {len(state)} arrays, expected {expected} of this optimizer")
    autoencoder.optimizer.load_own_variables(state)
