"""What the server behind `processes` imports once; no module of it may use TensorFlow on import."""

import importlib
import sys
from pathlib import Path

# The server's own path begins with the current folder, and its children change that.
sys.path[0] = str(Path(__file__).resolve().parents[2])

# librosa imports its parts when it is first asked for one.
for _module in "librosa.core.spectrum ray.train.tensorflow training.loop training.sound training.tracking".split():
    importlib.import_module(_module)
