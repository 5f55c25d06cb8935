"""Where things lie in a project, as `dvc.yaml` has it; relative to the project's folder."""

from pathlib import Path

SAMPLE_CORPUS = Path("data/sample_corpus")
SPECTROGRAMS = Path("data/spectrograms")
TABLE = Path("data/min_max_values.parquet")
REPORTS = Path("reports")
SUMMARY = REPORTS / "preprocess" / "summary.json"
REJECTED = REPORTS / "preprocess" / "rejected.csv"
