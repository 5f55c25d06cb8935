"""A trained network as two graphs, for many small calls: what a server runs. Keras and TensorFlow only."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training.autoencoder import Autoencoder
from training.network import Architecture

_BATCH_ROWS = 64


class CompiledAutoencoder:
    """Encodes and decodes as an `Autoencoder` does, several times faster where batches are small.

    `keras.Model.predict` takes a tenth of a second around each call, and calling the model some milliseconds for its
    layers one by one. A graph that leaves the number of rows open is traced once for all batches.

    Parameters
    ----------
    autoencoder : Autoencoder
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        self.architecture: Architecture = autoencoder.architecture
        self._encode = _compile(autoencoder.encoder)
        self._decode = _compile(autoencoder.decoder)

    def encode(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return latent vectors (n, latent_dim) of spectrograms (n, n_bins, n_frames, 1)."""
        return self._encode(x)

    def decode(self, z: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return spectrograms (n, n_bins, n_frames, 1) of latent vectors (n, latent_dim)."""
        return self._decode(z)

    def reconstruct(self, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return reconstructions (n, n_bins, n_frames, 1) and latent vectors (n, latent_dim) of spectrograms."""
        z = self.encode(x)
        return self.decode(z), z


def _compile(model: keras.Model) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Return a model as a function of any number of rows, already traced."""
    rows = tf.TensorSpec((None, *model.input.shape[1:]), tf.float32)
    graph = tf.function(lambda batch: model(batch, training=False)).get_concrete_function(rows)

    def apply(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = [np.empty((0, *model.output.shape[1:]), dtype=np.float32)]
        for start in range(0, len(batch), _BATCH_ROWS):
            parts.append(graph(tf.constant(batch[start : start + _BATCH_ROWS], tf.float32)).numpy())
        return np.concatenate(parts)

    return apply
