"""What the server behind `processes` imports once; no module of it may use TensorFlow on import."""

import sys
from pathlib import Path

# The server's own path begins with the current folder, and its children change that.
sys.path[0] = str(Path(__file__).resolve().parents[2])

import ray.train.tensorflow

import pipeline.engine
import training.loop
import training.sound
import training.tracking  # noqa: F401
