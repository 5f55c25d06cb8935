"""Which versions of which packages there are, here and on other machines. Imports none of them.

Another version of a library may change the last bits of a number, and another one of Ray may not understand this one.
"""

import importlib.metadata
import platform
import socket
from collections.abc import Iterable, Mapping

from pipeline.errors import ResourceError

# What preprocessing and training import where they run. Of names with a bar between them one is enough.
PREPROCESSING = (
    "ray",
    "numpy",
    "scipy",
    "librosa",
    "soundfile",
    "soxr",
    "pyarrow",
    "pydantic",
    "ruamel.yaml",
    "pyloudnorm",
)
TRAINING = (*PREPROCESSING, "tensorflow|tensorflow-cpu", "keras", "scikit-learn", "mlflow", "psutil")


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of packages; an empty one where a package is not installed."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"Python": python, **{name: _version(name) for name in names}}


def check_same(here: Mapping[str, str], there: Mapping[str, str], where: str, origin: str = "") -> None:
    """Refuse what another machine lacks or has in another version; what is not installed here is not asked for.

    Parameters
    ----------
    here, there : mapping
        What `installed` returned.
    where : str
        The other machine.
    origin : str, optional
        This machine's name, where it is not the one that this runs on.

    Raises
    ------
    ResourceError
        With packages and machine.
    """
    wrong = [name for name, version in here.items() if version and there.get(name, "") != version]
    if wrong:
        raise ResourceError(
            f"{where} has {_describe(wrong, there)}, where {origin or socket.gethostname()} has "
            f"{_describe(wrong, here)}: install the same on both, as in requirements/run.txt"
        )


def _describe(names: Iterable[str], versions: Mapping[str, str]) -> str:
    """Return packages with their versions, in words."""
    shown = ((name.partition("|")[0], versions.get(name, "")) for name in names)
    return ", ".join(f"{name} {version}" if version else f"no {name}" for name, version in shown)


def _version(name: str) -> str:
    for alternative in name.split("|"):
        try:
            return importlib.metadata.version(alternative)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""
