"""What shapes the numbers beside parameters and sounds: our code, libraries, and the processor's features."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

# Every file of which a change may change a row or its line. A test finds those that are missing here.
CODE = (
    "decoder",
    "isolation",
    "levels",
    "loader",
    "normaliser",
    "padder",
    "plain_wav",
    "resampler",
    "shards",
    "spectrogram",
)


@cache
def code_sha256() -> str:
    """Return one digest of the source files that shape numbers."""
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for name in CODE:
        # As text, since git may give a clone other line ends.
        digest.update(f"{name}\n{(folder / f'{name}.py').read_text(encoding='utf-8')}\0".encode())
    return digest.hexdigest()


def numeric_versions(optional: Sequence[str] = ()) -> dict[str, Any]:
    """Return what else shapes the last bits: libraries, and the processor's features that NumPy dispatches on."""
    libraries = ("numpy", "soxr", "soundfile", *optional)
    features = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", [])
    return {
        **{name: importlib.metadata.version(name) for name in libraries},
        "libsndfile": sf.__libsndfile_version__,
        "machine": platform.machine(),
        "simd": sorted(features),
        "code": code_sha256(),
    }
