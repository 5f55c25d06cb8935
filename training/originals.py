"""The recordings that a store's rows were made of, as they were heard: padded, cut, one channel."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus import list_clips
from pipeline.errors import CorpusError
from pipeline.loader import Loader
from pipeline.padder import Padder


class Originals:
    """Reads rows' recordings from the corpus.

    Parameters
    ----------
    folder : Path
        Of the corpus.
    preprocessing : dict
        Every parameter that shaped the rows, as a store's format and a model's description have it.
    """

    def __init__(self, folder: Path, preprocessing: dict[str, Any]) -> None:
        self._folder = folder
        self._paths = {clip.clip_id: clip.path for clip in list_clips(folder).clips}
        self._loader = Loader(preprocessing["sample_rate"], preprocessing["duration_s"], preprocessing["mono"])
        self._padder = Padder(preprocessing["pad_mode"])
        self._n_overlap = int(preprocessing["overlap"] * self._loader.n_samples)

    def load(self, clip_id: str, segment: int = 0, channel: int = 0) -> NDArray[np.float32]:
        """Return a row's sound, shape (n_samples,).

        Raises
        ------
        CorpusError
            The recording is no longer there.
        """
        if clip_id not in self._paths:
            raise CorpusError(
                f"corpus folder {str(self._folder)!r} no longer holds {clip_id!r}; run the preprocess stage again"
            )
        y = self._loader.load_segment(self._paths[clip_id], segment, self._n_overlap)[channel]
        return self._padder.pad(y, self._loader.n_samples)
