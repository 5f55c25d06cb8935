"""Spectrograms to a model, its runs and its sounds."""

import os
import sys

import pipeline  # noqa: F401 sets what must be set before ray is imported
from training.notices import QuietFinder

# Before TensorFlow and MLflow are imported, which read them once: warnings and errors only, nothing reported home.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
sys.meta_path.insert(0, QuietFinder())
