"""Where things lie in a project, as `dvc.yaml` has it; relative to the project's folder."""

from pathlib import Path

from pipeline.paths import REPORTS

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
GENERATION_METRICS = GENERATION / "metrics.json"
PAGE = REPORTS / "listen.html"
REGISTERED = REPORTS / "register" / "registered.json"
