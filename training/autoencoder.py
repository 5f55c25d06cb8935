"""Autoencoder: a convolutional encoder, a dense bottleneck, and the decoder that mirrors it.

Keras and TensorFlow only; knows neither Ray nor MLflow nor where spectrograms come from.
"""

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ModelError, ParameterError, one_line
from training.adam import Adam
from training.dataset import epoch_order
from training.network import Architecture, build_decoder, build_encoder, join, join_variational
from training.step import SynchronousStep

FORMAT_VERSION = 2
DESCRIPTION_FILE = "autoencoder.json"
WEIGHTS_FILE = "autoencoder.weights.h5"


class Autoencoder:
    """A mirrored convolutional autoencoder of spectrograms.

    A variational one (Kingma and Welling, "Auto-encoding variational Bayes", 2014) trains with latent vectors drawn
    from a normal distribution around the encoder's; everywhere else the latent vector is the mean of that distribution.

    Parameters
    ----------
    input_shape : sequence of int
        (n_bins, n_frames, 1).
    conv_filters : sequence of int
        Channels of each convolutional layer of the encoder; each is followed by batch normalisation and ReLU.
    conv_kernels, conv_strides : sequence of int or of (int, int)
        Of each layer; a pair is along bins and frames.
    latent_space_dim : int
        Length of the latent vector.
    variational : bool
    beta : float
        Weight of the KL divergence, as `Architecture` has it.

    Attributes
    ----------
    encoder, decoder : keras.Model
        Spectrograms to latent vectors, and back.
    model : keras.Model
        What trains and is saved: spectrograms to reconstructions; of a variational autoencoder, spectrograms and
        standard normal noise (n, latent_dim) to reconstructions and KL divergences (n,) in nats.

    Raises
    ------
    ParameterError
        The lists differ in length, or the strides' product does not divide the shape.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        conv_filters: Sequence[int],
        conv_kernels: Sequence[int | Sequence[int]],
        conv_strides: Sequence[int | Sequence[int]],
        latent_space_dim: int,
        variational: bool = False,
        beta: float = 1e-3,
    ) -> None:
        if len(input_shape) != 3 or input_shape[2] != 1:
            raise ParameterError(f"input_shape={tuple(input_shape)} must be (n_bins, n_frames, 1)")
        n_bins, n_frames, _ = input_shape
        self.architecture = Architecture(
            (n_bins, n_frames, 1),
            tuple(conv_filters),
            tuple(_pair("conv_kernels", kernel) for kernel in conv_kernels),
            tuple(_pair("conv_strides", stride) for stride in conv_strides),
            latent_space_dim,
            variational,
            beta,
        )
        self.architecture.check()
        self.encoder: keras.Model = build_encoder(self.architecture)
        self.decoder: keras.Model = build_decoder(self.architecture)
        self.model: keras.Model = (join_variational if variational else join)(self.encoder, self.decoder)
        self.optimizer: keras.optimizers.Optimizer | None = None

    def compile(self, learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-3) -> None:
        """Choose Adam at a learning rate, or at a schedule of them."""
        self.optimizer = Adam(learning_rate)

    def train(self, x: NDArray[np.float32], batch_size: int, num_epochs: int, seed: int = 0) -> list[float]:
        """Train in this process, with the step that a cluster's workers take together.

        Parameters
        ----------
        x : ndarray of float32, shape (n, n_bins, n_frames, 1)
            An epoch is `n // batch_size` full batches of a permutation that follows from the seed and the epoch.
        batch_size, num_epochs : int
        seed : int
            Of the order, and of a variational autoencoder's noise.

        Returns
        -------
        list of float
            Mean squared error of each epoch.

        Raises
        ------
        ParameterError
            The model is not compiled, or `x` is of another shape or smaller than a batch.
        """
        if self.optimizer is None:
            raise ParameterError("compile(learning_rate) must come before train")
        self._check_batch(x, self.encoder)
        if len(x) < batch_size:
            raise ParameterError(f"x has {len(x)} rows and must have at least batch_size={batch_size}")
        step = SynchronousStep(self.model, self.optimizer, beta=self.architecture.beta, seed=seed)
        history = []
        for epoch in range(num_epochs):
            order = epoch_order(len(x), seed, epoch)
            starts = range(0, len(x) - batch_size + 1, batch_size)
            history.append(step.train_epoch(x[order[start : start + batch_size]] for start in starts).mse)
        return history

    def encode(self, x: NDArray[np.float32], batch_size: int = 64) -> NDArray[np.float32]:
        """Return latent vectors (n, latent_dim) of spectrograms (n, n_bins, n_frames, 1)."""
        return self._apply(self.encoder, x, batch_size)

    def decode(self, z: NDArray[np.float32], batch_size: int = 64) -> NDArray[np.float32]:
        """Return spectrograms (n, n_bins, n_frames, 1) of latent vectors (n, latent_dim)."""
        return self._apply(self.decoder, z, batch_size)

    def reconstruct(
        self, x: NDArray[np.float32], batch_size: int = 64
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return reconstructions (n, n_bins, n_frames, 1) and latent vectors (n, latent_dim) of spectrograms."""
        z = self.encode(x, batch_size)
        return self.decode(z, batch_size), z

    def summary(self) -> None:
        """Print the layers of encoder, decoder and both together."""
        for model in (self.encoder, self.decoder, self.model):
            model.summary()

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `autoencoder.json` and `autoencoder.weights.h5` into a folder, which is made if need be."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        description = {"format_version": FORMAT_VERSION, **asdict(self.architecture)}
        (path / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        self.model.save_weights(path / WEIGHTS_FILE)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "Autoencoder":
        """Return the autoencoder that `save` wrote.

        Raises
        ------
        ModelError
            A file is missing or damaged, or of another format version or architecture; the message says what was
            expected and what was found.
        """
        path = Path(folder)
        description = _read_description(path / DESCRIPTION_FILE)
        try:
            autoencoder = cls(**description)
        except (TypeError, ValueError) as error:  # ParameterError is one
            raise ModelError(f"{path / DESCRIPTION_FILE}: describes no autoencoder: {error}") from error
        autoencoder.load_weights(path)
        return autoencoder

    def load_weights(self, folder: Path) -> None:
        """Take the weights that an autoencoder of the same architecture saved.

        Raises
        ------
        ModelError
            As for `load`.
        """
        description = _read_description(folder / DESCRIPTION_FILE)
        expected = json.loads(json.dumps(asdict(self.architecture)))
        for name, value in expected.items():
            if description[name] != value:
                raise ModelError(f"{folder / DESCRIPTION_FILE}: {name} is {description[name]}, expected {value}")
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            raise ModelError(f"{path}: missing, expected the weights of {DESCRIPTION_FILE} beside it")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # Keras tells twice of what it cannot find
                self.model.load_weights(path)
        except (OSError, ValueError, KeyError) as error:
            # After both shapes Keras writes out all values.
            reason = one_line(error).partition(" Target variable:")[0]
            raise ModelError(f"{path}: cannot be read as the weights of this architecture: {reason}") from error

    def set_output_bias(self, mean: float) -> None:
        """Start the decoder at the data's mean, which it would take many steps to find."""
        self.decoder.get_layer("decoder_output").bias.assign([mean])

    def _apply(self, model: keras.Model, batch: NDArray[np.float32], batch_size: int) -> NDArray[np.float32]:
        """Return a model's output for all rows, a batch at a time."""
        self._check_batch(batch, model)
        parts = [
            np.asarray(model(batch[start : start + batch_size], training=False))
            for start in range(0, len(batch), batch_size)
        ]
        return np.concatenate(parts) if parts else np.empty((0, *model.output.shape[1:]), dtype=np.float32)

    @staticmethod
    def _check_batch(batch: NDArray[np.float32], model: keras.Model) -> None:
        """Refuse rows of another shape."""
        expected = tuple(model.input.shape[1:])
        if batch.shape[1:] != expected:
            raise ParameterError(f"{model.name}: rows have shape {batch.shape[1:]} and must have {expected}")


def _pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Return one number for both axes, or a pair as it is."""
    if isinstance(value, int):
        return value, value
    try:
        first, second = value
    except (TypeError, ValueError) as error:
        raise ParameterError(f"{name} has {value!r}, which must be a whole number or two of them") from error
    return first, second


def _read_description(path: Path) -> dict[str, Any]:
    """Return what `save` wrote beside the weights."""
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{path}: missing, expected a folder that Autoencoder.save wrote") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    if not isinstance(description, dict):
        raise ModelError(f"{path}: holds {type(description).__name__}, expected an object")
    version = description.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise ModelError(f"{path}: format_version is {version!r}, expected {FORMAT_VERSION}")
    expected = set(Architecture.__dataclass_fields__)
    if set(description) != expected:
        raise ModelError(f"{path}: holds {sorted(description)}, expected {sorted(expected)}")
    return description
