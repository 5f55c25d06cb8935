"""Where things lie in a project, as `dvc.yaml` has it; relative to the project's folder."""

from pathlib import Path

from pipeline.paths import REPORTS, SPECTROGRAMS, TABLE
from pipeline.storage import Storage, open_storage

MODEL = Path("models/autoencoder")
CHECKPOINTS = Path("checkpoints")
CURVES = REPORTS / "train" / "curves.csv"
TRAIN_METRICS = REPORTS / "train" / "metrics.json"
EVALUATION = REPORTS / "evaluate"
PICTURE = EVALUATION / "reconstructions.png"
SOUNDS = EVALUATION / "sounds"
TEST_METRICS = EVALUATION / "metrics.json"
LABELS = EVALUATION / "labels.csv"
BANDS = EVALUATION / "bands.csv"
GENERATION = REPORTS / "generate"
GENERATED_SOUNDS = GENERATION / "sounds"
CODES = GENERATION / "codes.csv"
MAP = GENERATION / "map.csv"
DENSITIES = GENERATION / "densities.csv"
GENERATION_METRICS = GENERATION / "metrics.json"
PAGE = REPORTS / "listen.html"
REGISTERED = REPORTS / "register" / "registered.json"


def checkpoint_location(key: str, storage: str | None) -> str:
    """Return where the checkpoints of a training lie: in the project, or in the storage when there is one."""
    if storage is None:
        return str(CHECKPOINTS.absolute() / key)
    return open_storage(storage).at(CHECKPOINTS.name).at(key).location


def outbox(key: str, storage: str | None) -> Storage:
    """Return where a training keeps what it could not send to MLflow."""
    return open_storage(checkpoint_location(key, storage)).beside(".unsent")


def shared_paths(storage: str | None) -> tuple[list[Path], list[str]]:
    """Return what every node must read and where it must write: the project's folders, or the storage alone."""
    if storage is None:
        return [SPECTROGRAMS.absolute(), TABLE.absolute()], [str(CHECKPOINTS.absolute())]
    return [], [storage]
