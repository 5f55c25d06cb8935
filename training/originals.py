"""The recordings that a store's rows were made of, as they were heard: trimmed, cut, padded, levelled, one channel."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus import list_clips
from pipeline.errors import CorpusError
from pipeline.levels import Leveller
from pipeline.parts import Parts
from pipeline.recording import Facts


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
        self._parts = Parts.of(preprocessing)
        self._loader = self._parts.loader
        self._leveller = Leveller(preprocessing["level"], preprocessing["level_db"], preprocessing["sample_rate"])
        self._is_first = preprocessing["segment"] == "first"
        # Since a long recording is read from its start to its end for it.
        self._examine: Callable[[str], Facts] = cache(self._loader.examine)

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
        y = self._read(self._paths[clip_id], segment)[channel : channel + 1]
        y = self._parts.padder.pad(y, self._loader.n_samples)
        (levelled,) = self._leveller.apply(y, self._leveller.gains_db(y, np.abs(y).max(axis=-1)))
        return np.asarray(levelled)

    def _read(self, path: str, segment: int) -> NDArray[np.float32]:
        """Return a segment (n_channels, n_samples), by the way that its row was made of it."""
        n_samples, n_overlap = self._loader.n_samples, self._parts.n_overlap
        if self._is_first:
            return self._loader.load(path).y
        facts = self._examine(path)
        if self._parts.padder.count_segments(self._loader.count_resampled(facts), n_samples, n_overlap) == 1:
            return self._loader.load(path).y
        ((y,),) = self._loader.stream(path, facts, range(segment, segment + 1), n_overlap)
        return y
