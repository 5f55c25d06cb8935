"""What a trained model came from, kept beside its weights as `training.json`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError

FORMAT_VERSION = 1
DESCRIPTION_FILE = "training.json"


@dataclass(frozen=True)
class Description:
    """What a trained model came from, kept beside its weights.

    Attributes
    ----------
    training_key : str
        Digest of data, parameters and code.
    data_digest : str
        Of the store that it was trained on.
    preprocessing : dict
        Every parameter that shaped the spectrograms.
    target_shape : (int, int), optional
        (n_bins, n_frames) that they were resized to.
    """

    training_key: str
    data_digest: str
    preprocessing: dict[str, Any]
    target_shape: tuple[int, int] | None

    def to_json(self) -> str:
        """Return the text of `training.json`."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def load(cls, folder: Path) -> "Description":
        """Read `training.json` from a model's folder.

        Raises
        ------
        ModelError
            It is missing, damaged, or of another version.
        """
        path = folder / DESCRIPTION_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("format_version", None)
            if version != FORMAT_VERSION:
                raise ModelError(f"{path}: format_version is {version!r}, expected {FORMAT_VERSION}")
            shape = content.pop("target_shape")
            return cls(target_shape=tuple(shape) if shape else None, **content)
        except FileNotFoundError as error:
            raise ModelError(f"{path}: missing; the train stage has not finished here") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{path}: cannot be read: {error}") from error
