"""From sound to sound with a trained autoencoder: what reconstructs a recording, with no server and no store."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.loader import Loader
from pipeline.normaliser import MinMaxNormaliser
from pipeline.padder import Padder
from pipeline.spectrogram import LogSpectrogramExtractor
from training.autoencoder import Autoencoder
from training.codes import Codes
from training.dataset import resize
from training.description import DESCRIPTION_FILE, Description
from training.inference import CompiledAutoencoder
from training.network import Architecture

_LONGER_THAN_ANY_S = 1e9


def below_full_scale(y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a sound of any shape; what would be cut off at full scale is quieter as a whole."""
    return y / max(1.0, float(np.abs(y).max()))


class Network(Protocol):
    """What is asked of a trained network."""

    architecture: Architecture

    def encode(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return latent vectors (n, latent_dim) of spectrograms (n, n_bins, n_frames, 1)."""

    def decode(self, z: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return spectrograms (n, n_bins, n_frames, 1) of latent vectors (n, latent_dim)."""

    def reconstruct(self, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return reconstructions (n, n_bins, n_frames, 1) and latent vectors (n, latent_dim) of spectrograms."""


@dataclass(frozen=True)
class Spectra:
    """A sound as the network sees it: a spectrogram per segment, all of the first channel, then all of the next.

    Attributes
    ----------
    x : ndarray of float32, shape (n, n_bins, n_frames, 1)
        Normalised, at the network's shape.
    min_db, max_db : ndarray of float32, shape (n,)
        What undoes the normalisation.
    n_channels, n_samples : int
        Of the sound.
    """

    x: NDArray[np.float32]
    min_db: NDArray[np.float32]
    max_db: NDArray[np.float32]
    n_channels: int
    n_samples: int


class SoundAutoencoder:
    """An autoencoder with the preprocessing that it was trained behind, and its inverse.

    Parameters
    ----------
    autoencoder : Autoencoder or CompiledAutoencoder
    description : Description
    """

    def __init__(self, autoencoder: Network, description: Description) -> None:
        wanted = description.preprocessing
        self.autoencoder = autoencoder
        self._folding = wanted.get("fold", "mean"), wanted.get("resampling", "HQ")
        self.loader = Loader(wanted["sample_rate"], wanted["duration_s"], wanted["mono"], *self._folding)
        self.padder = Padder(wanted["pad_mode"])
        self.extractor = LogSpectrogramExtractor(
            *(wanted[name] for name in ("n_fft", "hop_length", "drop_nyquist", "ref", "amin", "top_db"))
        )
        self.normaliser = MinMaxNormaliser(*wanted["range"])

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, compiled: bool = False) -> "SoundAutoencoder":
        """Return what the train stage wrote into a folder.

        Parameters
        ----------
        folder : path-like
        compiled : bool
            Whether the network is to be made ready for many small calls, which takes a moment.

        Raises
        ------
        ModelError
            A file is missing, damaged, or of another version.
        """
        path = Path(folder)
        autoencoder, description = Autoencoder.load(path), Description.load(path)
        try:
            return cls(CompiledAutoencoder(autoencoder) if compiled else autoencoder, description)
        except (KeyError, TypeError, ValueError) as error:  # ParameterError is one
            raise ModelError(f"{path / DESCRIPTION_FILE}: describes no preprocessing: {error}") from error

    @property
    def sample_rate(self) -> int:
        """Of the sounds that come out, in Hz."""
        return self.loader.sample_rate

    def whole_loader(self) -> Loader:
        """Return a loader of whole recordings, at the model's rate."""
        return Loader(self.loader.sample_rate, _LONGER_THAN_ANY_S, self.loader.mono, *self._folding)

    @property
    def step(self) -> int:
        """Samples from the start of a segment to that of the next: three quarters of one."""
        return self.loader.n_samples - self._n_overlap

    def count_segments(self, n_samples: int) -> int:
        """Return the segments that a channel of `n_samples` samples is cut into."""
        return 1 + max(0, -(-(n_samples - self.loader.n_samples) // self.step))

    def analyse(self, y: NDArray[np.float32]) -> Spectra:
        """Return a sound as the network sees it.

        Parameters
        ----------
        y : ndarray of float32, shape (n_channels, n_samples)
            At the model's rate, of any length: it is cut into segments that overlap by a quarter.
        """
        segments = np.concatenate([self.padder.cut(channel, self.loader.n_samples, self._n_overlap) for channel in y])
        return self._normalise(self.extractor.extract(segments), *y.shape)

    def analyse_spectrogram(self, S_db: NDArray[np.float32]) -> Spectra:
        """Return the one segment of which a spectrogram (n_bins, n_frames) in dB is given."""
        return self._normalise(S_db[None], 1, self.loader.n_samples)

    def encode(self, sounds: Sequence[Spectra]) -> list[Codes]:
        """Return the codes of several sounds, which go through the network as one batch."""
        z = self._apply(self.autoencoder.encode, [each.x for each in sounds])
        return [Codes(part, each.min_db, each.max_db) for part, each in zip(z, sounds, strict=True)]

    def decode(self, codes: Sequence[Codes]) -> list[NDArray[np.float32]]:
        """Return normalised spectrograms (n, n_bins, n_frames, 1) of several sounds' codes, as one batch."""
        return self._apply(self.autoencoder.decode, [each.z for each in codes])

    def synthesise(self, x: NDArray[np.float32], codes: Codes, n_channels: int, n_samples: int) -> NDArray[np.float32]:
        """Return the sound (n_channels, n_samples) of the spectrograms of its segments.

        Parameters
        ----------
        x : ndarray of float32, shape (n, n_bins, n_frames, 1)
            Normalised, as `decode` returned them: all segments of the first channel, then all of the next.
        codes : Codes
            Whose levels they get.
        n_channels, n_samples : int
        """
        # Channel by channel, so that what comes of one does not depend on how many there are.
        channels = [
            self.invert(*parts)
            for parts in zip(*(np.split(each, n_channels) for each in (x, codes.min_db, codes.max_db)), strict=True)
        ]
        return np.stack([self.padder.join(segments, self._n_overlap, n_samples) for segments in channels])

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
        return self.reconstruct_many([y])[0]

    def reconstruct_many(self, sounds: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Return several sounds as `reconstruct` does each, all segments going through the network as one batch."""
        codes = self.encode([self.analyse(y) for y in sounds])
        parts = zip(self.decode(codes), codes, sounds, strict=True)
        return [self.synthesise(x_hat, each, *y.shape) for x_hat, each, y in parts]

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

    @property
    def _n_overlap(self) -> int:
        return self.loader.n_samples // 4

    def _normalise(self, S_db: NDArray[np.float32], n_channels: int, n_samples: int) -> Spectra:
        x, min_db, max_db = self.normaliser.normalise(S_db)
        n_bins, n_frames, _ = self.autoencoder.architecture.input_shape
        return Spectra(resize(x[..., None], (n_bins, n_frames)), min_db, max_db, n_channels, n_samples)

    @staticmethod
    def _apply(
        function: Callable[[NDArray[np.float32]], NDArray[np.float32]], parts: Sequence[NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]:
        """Apply a function of rows to the rows of all parts at once, and return what became of each part."""
        if not parts:
            return []
        return np.split(function(np.concatenate(parts)), np.cumsum([len(part) for part in parts])[:-1])
