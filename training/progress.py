"""How far a training is, epoch by epoch: what checkpoints keep, curves show and MLflow is sent."""

import csv
import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.errors import ModelError

FORMAT_VERSION = 1
_VARIATIONAL = ("train_kl", "val_kl", "val_loss")
CURVES = ("train_mse", "val_mse", "learning_rate", *_VARIATIONAL)


@dataclass(frozen=True)
class Epoch:
    """What is known of one finished epoch.

    Attributes
    ----------
    epoch : int
        Counted from 1.
    train_mse, val_mse : float
        Reconstruction errors: the first over the epoch's batches as the weights moved, the second after it.
    learning_rate : float
        At its end: the rate that the next step takes.
    samples_per_s : float
        Spectrograms trained on per second, over all workers.
    timestamp_ms : int
        When it ended, in Unix time: what makes sending it again the same as sending it once.
    train_kl, val_kl : float, optional
        Of a variational model, mean KL divergences of a row in nats.
    val_loss : float, optional
        Of a variational model, what training minimises: `val_mse` and the weighted divergence together.
    """

    epoch: int
    train_mse: float
    val_mse: float
    learning_rate: float
    samples_per_s: float
    timestamp_ms: int
    train_kl: float | None = None
    val_kl: float | None = None
    val_loss: float | None = None

    def describe(self) -> str:
        """Return what happened in it, for a person."""
        parts = [f"train_mse {self.train_mse:.6f}", f"val_mse {self.val_mse:.6f}"]
        if self.val_kl is not None:
            parts += [f"train_kl {self.train_kl:.2f}", f"val_kl {self.val_kl:.2f} nats"]
        return "  ".join([*parts, f"learning_rate {self.learning_rate:.2e}", f"{self.samples_per_s:.0f} samples/s"])


@dataclass(frozen=True)
class Begun:
    """An epoch that has begun.

    Attributes
    ----------
    steps : int
        How many of its steps are done.
    sums : tuple of tuple of float
        Of each worker, the sums of its errors over these steps.
    seconds : float
        How long they took.
    """

    steps: int
    sums: tuple[tuple[float, ...], ...]
    seconds: float


@dataclass(frozen=True)
class Progress:
    """How far a training is: its finished epochs, and how much of the next one is done."""

    history: tuple[Epoch, ...] = field(default=())
    begun: Begun | None = None

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    @property
    def best(self) -> Epoch:
        """The first epoch of the lowest loss on the validation set."""
        return min(self.history, key=lambda each: each.val_mse if each.val_loss is None else each.val_loss)

    def is_finished(self, epochs: int, patience: int) -> bool:
        """Whether all epochs are done, or `patience` of them brought nothing better."""
        return bool(self.history) and (self.epoch >= epochs or self.epoch - self.best.epoch >= patience)

    def describe(self) -> str:
        """Return how far it is, for a person."""
        return f"epoch {self.epoch}" + (f" and {self.begun.steps} steps" if self.begun else "")

    def to_json(self) -> str:
        """Return it as text, every number exact."""
        content: dict[str, object] = {
            "format_version": FORMAT_VERSION,
            "history": [asdict(epoch) for epoch in self.history],
        }
        if self.begun:
            content["begun"] = asdict(self.begun)
        return json.dumps(content, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> "Progress":
        """Return what `to_json` wrote.

        Raises
        ------
        ModelError
            It is of another version.
        ValueError, KeyError, TypeError
            It is nothing that `to_json` writes.
        """
        content = json.loads(text)
        if content["format_version"] != FORMAT_VERSION:
            raise ModelError(f"format_version is {content['format_version']!r}, expected {FORMAT_VERSION}")
        begun = content.get("begun")
        return cls(
            tuple(Epoch(**epoch) for epoch in content["history"]),
            begun and Begun(begun["steps"], tuple(map(tuple, begun["sums"])), begun["seconds"]),
        )


def write_curves(path: Path, progress: Progress) -> None:
    """Write what follows from data and parameters of the finished epochs as CSV, one line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", *CURVES])
        writer.writerows([epoch.epoch, *(getattr(epoch, name) for name in CURVES)] for epoch in progress.history)


def read_curves(path: Path) -> Progress:
    """Read what `write_curves` wrote; when and how fast is not known, and stands as now and NaN."""
    now = time.time_ns() // 1_000_000
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return Progress(
                tuple(
                    Epoch(
                        epoch=int(row["epoch"]),
                        train_mse=float(row["train_mse"]),
                        val_mse=float(row["val_mse"]),
                        learning_rate=float(row["learning_rate"]),
                        samples_per_s=math.nan,
                        timestamp_ms=now,
                        **{name: float(row[name]) if row[name] else None for name in _VARIATIONAL},
                    )
                    for row in csv.DictReader(file)
                )
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path}: cannot be read: {error}; run the train stage again") from error
