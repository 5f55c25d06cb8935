"""The parts that made a store, from the parameters that its `format.json` names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.loader import Loader
from pipeline.normaliser import MinMaxNormaliser
from pipeline.padder import Padder
from pipeline.spectrogram import LogSpectrogramExtractor


@dataclass(frozen=True)
class Parts:
    """What turns a recording into rows, and rows into sound."""

    loader: Loader
    padder: Padder
    extractor: LogSpectrogramExtractor
    normaliser: MinMaxNormaliser
    n_overlap: int

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> "Parts":
        """Return the parts of which these are the parameters.

        Raises
        ------
        KeyError
            One is missing.
        """
        extraction = ("n_fft", "hop_length", "drop_nyquist", "ref", "amin", "top_db")
        loading = ("sample_rate", "duration_s", "mono", "fold", "resampling", "trim_db")
        loader = Loader(*(parameters[name] for name in loading))
        return cls(
            loader,
            Padder(parameters["pad_mode"]),
            LogSpectrogramExtractor(*(parameters[name] for name in extraction)),
            MinMaxNormaliser(*parameters["range"]),
            int(parameters["overlap"] * loader.n_samples),
        )

    def to_db(
        self, x: NDArray[np.float32], min_db: NDArray[np.float32], max_db: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return rows (n, n_bins, n_frames) in dB."""
        return self.normaliser.denormalise(x, min_db, max_db)

    def invert(self, S_db: NDArray[np.float32], gain_db: NDArray[np.float32], n_total: int) -> NDArray[np.float32]:
        """Return the sound of a recording's segments, each fading into the next.

        Parameters
        ----------
        S_db : ndarray, shape (n_segments, n_bins, n_frames)
            In dB.
        gain_db : ndarray, shape (n_segments,)
            What each was raised by before, and is lowered by again.
        n_total : int
            Samples of all that is heard of the recording, at the loader's rate.

        Returns
        -------
        ndarray of float32, shape (n_total,)
        """
        segments = self.extractor.invert(S_db - gain_db[:, None, None], self.loader.n_samples)
        return self.padder.join(segments, self.n_overlap, n_total)
