"""What shapes the numbers beside parameters and sounds: our code, libraries, and the processor's features."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

# Every file of which a change may change a row or its line. A test finds those that are missing here.
CODE = (
    "child",
    "containers",
    "decoder",
    "isolation",
    "levels",
    "loader",
    "normaliser",
    "padder",
    "plain_wav",
    "recording",
    "resampler",
    "room",
    "shards",
    "signatures",
    "silence",
    "spectrogram",
)

# The package behind each library that decodes, but for the one that is always there.
_DECODERS = {"ffmpeg": "av"}


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
    return {
        **{name: importlib.metadata.version(name) for name in libraries},
        "libsndfile": sf.__libsndfile_version__,
        **processor(),
        "code": code_sha256(),
    }


def processor() -> dict[str, Any]:
    """Return the kind of this machine's processor, and those of its features that NumPy dispatches on."""
    features = np.show_config(mode="dicts").get("SIMD Extensions", {}).get("found", [])
    return {"machine": platform.machine(), "simd": sorted(features)}


def decoder_versions(libraries: Iterable[str]) -> dict[str, str]:
    """Return the packages behind libraries that decoded some rows: a version, or that there is none here any more."""
    return {package: _version(package) for name, package in _DECODERS.items() if name in libraries}


def are_current(versions: dict[str, Any], earlier: dict[str, Any]) -> bool:
    """Return whether rows of an earlier run would be the same today; of decoders those count that it has used."""
    used = [name for name, package in _DECODERS.items() if package in earlier]
    return earlier == versions | decoder_versions(used)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
