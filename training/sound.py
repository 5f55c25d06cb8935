"""From sound to sound with a trained autoencoder: what reconstructs a recording, with no server and no store."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.loader import Loader
from pipeline.normaliser import MinMaxNormaliser
from pipeline.padder import Padder
from pipeline.spectrogram import LogSpectrogramExtractor
from training.autoencoder import Autoencoder
from training.dataset import resize
from training.description import DESCRIPTION_FILE, Description

_LONGER_THAN_ANY_S = 1e9


class SoundAutoencoder:
    """An autoencoder with the preprocessing that it was trained behind, and its inverse.

    Parameters
    ----------
    autoencoder : Autoencoder
    description : Description
    """

    def __init__(self, autoencoder: Autoencoder, description: Description) -> None:
        wanted = description.preprocessing
        self.autoencoder = autoencoder
        self.loader = Loader(wanted["sample_rate"], wanted["duration_s"], wanted["mono"])
        self.padder = Padder(wanted["pad_mode"])
        self.extractor = LogSpectrogramExtractor(
            *(wanted[name] for name in ("n_fft", "hop_length", "drop_nyquist", "ref", "amin", "top_db"))
        )
        self.normaliser = MinMaxNormaliser(*wanted["range"])

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "SoundAutoencoder":
        """Return what the train stage wrote into a folder.

        Raises
        ------
        ModelError
            A file is missing, damaged, or of another version.
        """
        path = Path(folder)
        autoencoder, description = Autoencoder.load(path), Description.load(path)
        try:
            return cls(autoencoder, description)
        except (KeyError, TypeError, ValueError) as error:  # ParameterError is one
            raise ModelError(f"{path / DESCRIPTION_FILE}: describes no preprocessing: {error}") from error

    @property
    def sample_rate(self) -> int:
        """Of the sounds that come out, in Hz."""
        return self.loader.sample_rate

    def whole_loader(self) -> Loader:
        """Return a loader of whole recordings, at the model's rate."""
        return Loader(self.loader.sample_rate, _LONGER_THAN_ANY_S, self.loader.mono)

    def reconstruct(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a sound as the autoencoder keeps it.

        Parameters
        ----------
        y : ndarray of float32, shape (n_channels, n_samples)
            At the model's rate, of any length: it goes through in segments that overlap by a quarter, and each
            fades into the next.

        Returns
        -------
        ndarray of float32, shape (n_channels, n_samples)
        """
        n_samples = self.loader.n_samples
        n_overlap = n_samples // 4
        return np.stack(
            [
                self.padder.join(
                    self._reconstruct(self.padder.cut(channel, n_samples, n_overlap)), n_overlap, len(channel)
                )
                for channel in y
            ]
        )

    def invert(
        self, x: NDArray[np.float32], min_db: NDArray[np.float32], max_db: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the sounds (n, n_samples) of normalised spectrograms (n, n_bins, n_frames, 1) and their extremes."""
        return self.extractor.invert(self.to_db(x, min_db, max_db), self.loader.n_samples)

    def to_db(
        self, x: NDArray[np.float32], min_db: NDArray[np.float32], max_db: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return normalised spectrograms (n, n_bins, n_frames, 1) in dB, (n, n_bins, n_frames), at their own shape."""
        shape = self.extractor.n_bins, self.extractor.n_frames(self.loader.n_samples)
        x = np.clip(resize(x, shape)[..., 0], self.normaliser.low, self.normaliser.high)
        return self.normaliser.denormalise(x, min_db, max_db)

    def _reconstruct(self, segments: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return segments (n, n_samples) as the autoencoder keeps them."""
        x, min_db, max_db = self.normaliser.normalise(self.extractor.extract(segments))
        n_bins, n_frames, _ = self.autoencoder.architecture.input_shape
        x_hat, _ = self.autoencoder.reconstruct(resize(x[..., None], (n_bins, n_frames)))
        return self.invert(x_hat, min_db, max_db)
