"""What a training has for its MLflow run and could not send: beside its checkpoints, until a server takes it."""

import re
from collections.abc import Iterator

from pipeline.storage import Storage
from training.progress import Progress

_HISTORY = "history.json"
_PICTURE = re.compile(r"(?P<name>.+)-(?P<epoch>\d+)\.png")


class Outbox:
    """Epochs with the times at which they ended, and pictures by name and epoch.

    Parameters
    ----------
    storage : Storage
        Of this training alone.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def keep(self, progress: Progress) -> None:
        """Keep the curves so far."""
        self._storage.put(_HISTORY, [progress.to_json().encode()])

    def progress(self) -> Progress | None:
        """Return the curves that were kept, if any were."""
        try:
            return Progress.from_json(self._storage.get(_HISTORY))
        except FileNotFoundError:
            return None

    def keep_picture(self, name: str, epoch: int, content: bytes) -> None:
        """Keep a picture, as the bytes of a PNG file."""
        self._storage.put(f"{name}-{epoch:05d}.png", [content])

    def pictures(self) -> Iterator[tuple[str, int, bytes]]:
        """Yield name, epoch and content of each picture, the oldest first; one that was taken is removed."""
        for entry in self._storage.entries():
            if found := _PICTURE.fullmatch(entry.name):
                yield found["name"], int(found["epoch"]), self._storage.get(entry.name)
                self._storage.remove(entry.name)

    def n_pictures(self) -> int:
        """Return how many pictures are kept."""
        return sum(bool(_PICTURE.fullmatch(entry.name)) for entry in self._storage.entries())

    def clear(self) -> None:
        """Remove everything."""
        self._storage.clear()
