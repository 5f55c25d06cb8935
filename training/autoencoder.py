"""Autoencoder: a convolutional encoder, a dense bottleneck, and the decoder that mirrors it.

Keras and TensorFlow only; knows neither Ray nor MLflow nor where spectrograms come from.
"""

import json
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.errors import ModelError, ParameterError
from training.dataset import epoch_order
from training.step import SynchronousStep

FORMAT_VERSION = 1
DESCRIPTION_FILE = "autoencoder.json"
WEIGHTS_FILE = "autoencoder.weights.h5"
# Keras' default of 0.99 needs some 500 steps to forget its start, which is most of a short training.
_BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-3


@dataclass(frozen=True)
class Architecture:
    """What an autoencoder is made from: everything that `Autoencoder` is given, in one form.

    Attributes
    ----------
    input_shape : tuple of int
        (n_bins, n_frames, 1).
    conv_filters : tuple of int
    conv_kernels, conv_strides : tuple of (int, int)
        Along bins and frames.
    latent_space_dim : int
    """

    input_shape: tuple[int, int, int]
    conv_filters: tuple[int, ...]
    conv_kernels: tuple[tuple[int, int], ...]
    conv_strides: tuple[tuple[int, int], ...]
    latent_space_dim: int

    @property
    def bottleneck_shape(self) -> tuple[int, int, int]:
        """(n_bins, n_frames, n_channels) that the last convolution leaves."""
        rows = math.prod(stride[0] for stride in self.conv_strides)
        columns = math.prod(stride[1] for stride in self.conv_strides)
        return self.input_shape[0] // rows, self.input_shape[1] // columns, self.conv_filters[-1]

    def check(self) -> None:
        """Refuse layers without partners, numbers that no layer has, and shapes that the strides do not divide."""
        lengths = len(self.conv_filters), len(self.conv_kernels), len(self.conv_strides)
        if len(set(lengths)) > 1 or not lengths[0]:
            raise ParameterError(
                f"conv_filters, conv_kernels, conv_strides have {lengths[0]}, {lengths[1]} and {lengths[2]} entries, "
                "and must have one per layer"
            )
        for name, value in asdict(self).items():
            numbers = np.ravel(value)
            if numbers.dtype.kind != "i" or numbers.min() < 1:
                raise ParameterError(f"{name}={value} must be whole numbers of at least 1")
        for axis, name in enumerate(("bins", "frames")):
            stride = math.prod(each[axis] for each in self.conv_strides)
            if self.input_shape[axis] % stride:
                raise ParameterError(
                    f"input_shape={self.input_shape}: {self.input_shape[axis]} {name} are no multiple of {stride}, the "
                    f"product of conv_strides along {name}, so the decoder cannot mirror the encoder"
                )


@keras.saving.register_keras_serializable("generative_music")
class SynchronisedBatchNormalization(keras.layers.BatchNormalization):  # type: ignore[misc]
    """Batch normalisation over the batches of all replicas, with one exchange a layer instead of Keras' three.

    Every replica holds an equal share of the global batch, so means of means are means, and the counts that Keras
    exchanges are known. Replicas tell each other mean and variance rather than the mean of squares: a difference of
    large numbers would give two workers another variance than one (by 1e-4 where the mean is ten deviations).
    """

    def _moments(self, inputs: Any, mask: Any) -> tuple[Any, Any]:
        context = tf.distribute.get_replica_context()
        if mask is not None or context is None or context.num_replicas_in_sync == 1:
            return super()._moments(inputs, mask)  # type: ignore[no-any-return]
        # Each replica fills its own line of zeros, so that the sum is all lines.
        line = tf.one_hot(context.replica_id_in_sync_group, context.num_replicas_in_sync, dtype=inputs.dtype)
        local = tf.stack(tf.nn.moments(inputs, self._reduction_axes))
        moments = context.all_reduce(tf.distribute.ReduceOp.SUM, line[:, None, None] * local)
        means, variances = tf.unstack(moments, axis=1)
        return tf.reduce_mean(means, 0), tf.reduce_mean(variances, 0) + tf.math.reduce_variance(means, 0)


class Autoencoder:
    """A mirrored convolutional autoencoder of spectrograms.

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
        )
        self.architecture.check()
        self.encoder: keras.Model = _build_encoder(self.architecture)
        self.decoder: keras.Model = _build_decoder(self.architecture)
        self.model: keras.Model = keras.Model(self.encoder.input, self.decoder(self.encoder.output), name="autoencoder")
        self.optimizer: keras.optimizers.Optimizer | None = None

    def compile(self, learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-3) -> None:
        """Choose Adam at a learning rate, or at a schedule of them, to minimise the mean squared error."""
        self.optimizer = keras.optimizers.Adam(learning_rate)

    def train(self, x: NDArray[np.float32], batch_size: int, num_epochs: int, seed: int = 0) -> list[float]:
        """Train in this process, with the step that a cluster's workers take together.

        Parameters
        ----------
        x : ndarray of float32, shape (n, n_bins, n_frames, 1)
            An epoch is `n // batch_size` full batches of a permutation that follows from the seed and the epoch.
        batch_size, num_epochs, seed : int

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
        self._check_batch(x, self.model)
        if len(x) < batch_size:
            raise ParameterError(f"x has {len(x)} rows and must have at least batch_size={batch_size}")
        step = SynchronousStep(self.model, self.optimizer)
        history = []
        for epoch in range(num_epochs):
            order = epoch_order(len(x), seed, epoch)
            starts = range(0, len(x) - batch_size + 1, batch_size)
            history.append(step.train_epoch(x[order[start : start + batch_size]] for start in starts))
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
            reason = " ".join(str(error).split()).partition(" Target variable:")[0]
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


def _build_encoder(architecture: Architecture) -> keras.Model:
    """Return input -> (convolution, batch normalisation, ReLU) per layer -> latent vector."""
    inputs = x = keras.Input(architecture.input_shape, name="encoder_input")
    layers = zip(architecture.conv_filters, architecture.conv_kernels, architecture.conv_strides, strict=True)
    for number, (filters, kernel, strides) in enumerate(layers, start=1):
        x = keras.layers.Conv2D(
            filters, kernel, strides, padding="same", use_bias=False, name=f"encoder_conv_{number}"
        )(x)
        x = _normalise_and_activate(x, f"encoder_{{}}_{number}")
    x = keras.layers.Flatten(name="encoder_flatten")(x)
    z = keras.layers.Dense(architecture.latent_space_dim, name="encoder_output")(x)
    return keras.Model(inputs, z, name="encoder")


def _build_decoder(architecture: Architecture) -> keras.Model:
    """Return latent vector -> the encoder's layers backwards, transposed -> linear output."""
    shape = architecture.bottleneck_shape
    inputs = keras.Input((architecture.latent_space_dim,), name="decoder_input")
    x = keras.layers.Dense(math.prod(shape), name="decoder_dense")(inputs)
    x = keras.layers.Reshape(shape, name="decoder_reshape")(x)
    for number in range(len(architecture.conv_filters) - 1, 0, -1):
        x = keras.layers.Conv2DTranspose(
            architecture.conv_filters[number - 1],
            architecture.conv_kernels[number],
            architecture.conv_strides[number],
            padding="same",
            use_bias=False,
            name=f"decoder_conv_transpose_{number + 1}",
        )(x)
        x = _normalise_and_activate(x, f"decoder_{{}}_{number + 1}")
    x_hat = keras.layers.Conv2DTranspose(
        1, architecture.conv_kernels[0], architecture.conv_strides[0], padding="same", name="decoder_output"
    )(x)
    return keras.Model(inputs, x_hat, name="decoder")


def _normalise_and_activate(x: Any, name: str) -> Any:
    """Return x through batch normalisation and ReLU; the convolution before needs no bias of its own."""
    x = SynchronisedBatchNormalization(
        momentum=_BATCH_NORM_MOMENTUM, epsilon=BATCH_NORM_EPSILON, name=name.format("bn")
    )(x)
    return keras.layers.ReLU(name=name.format("relu"))(x)


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
