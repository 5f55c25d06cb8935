"""The layers of an autoencoder, and what they are made from. Keras and TensorFlow only."""

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline.errors import ParameterError
from training.layers import Conv2D, Conv2DTranspose, Dense

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
    variational : bool
    beta : float
        Weight of the KL divergence in what training minimises: the mean squared error of the values, plus `beta` times
        the divergence in nats divided by the number of values. It is twice the variance of the noise that a value is
        taken to have. Nothing follows from it unless the autoencoder is variational.
    """

    input_shape: tuple[int, int, int]
    conv_filters: tuple[int, ...]
    conv_kernels: tuple[tuple[int, int], ...]
    conv_strides: tuple[tuple[int, int], ...]
    latent_space_dim: int
    variational: bool = False
    beta: float = 1e-3

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
        for name in ("input_shape", "conv_filters", "conv_kernels", "conv_strides", "latent_space_dim"):
            value = getattr(self, name)
            numbers = np.ravel(value)
            if numbers.dtype.kind != "i" or numbers.min() < 1:
                raise ParameterError(f"{name}={value} must be whole numbers of at least 1")
        if not 0 < self.beta < math.inf:
            raise ParameterError(f"beta={self.beta} must be a number above zero")
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


def build_encoder(architecture: Architecture) -> keras.Model:
    """Return input -> (convolution, batch normalisation, ReLU) per layer -> latent vector."""
    inputs = x = keras.Input(architecture.input_shape, name="encoder_input")
    layers = zip(architecture.conv_filters, architecture.conv_kernels, architecture.conv_strides, strict=True)
    for number, (filters, kernel, strides) in enumerate(layers, start=1):
        x = Conv2D(filters, kernel, strides, padding="same", use_bias=False, name=f"encoder_conv_{number}")(x)
        x = _normalise_and_activate(x, f"encoder_{{}}_{number}")
    x = keras.layers.Flatten(name="encoder_flatten")(x)
    z = Dense(architecture.latent_space_dim, name="encoder_output")(x)
    return keras.Model(inputs, z, name="encoder")


def build_decoder(architecture: Architecture) -> keras.Model:
    """Return latent vector -> the encoder's layers backwards, transposed -> linear output."""
    shape = architecture.bottleneck_shape
    inputs = keras.Input((architecture.latent_space_dim,), name="decoder_input")
    x = Dense(math.prod(shape), name="decoder_dense")(inputs)
    x = keras.layers.Reshape(shape, name="decoder_reshape")(x)
    for number in range(len(architecture.conv_filters) - 1, 0, -1):
        x = Conv2DTranspose(
            architecture.conv_filters[number - 1],
            architecture.conv_kernels[number],
            architecture.conv_strides[number],
            padding="same",
            use_bias=False,
            name=f"decoder_conv_transpose_{number + 1}",
        )(x)
        x = _normalise_and_activate(x, f"decoder_{{}}_{number + 1}")
    x_hat = Conv2DTranspose(
        1, architecture.conv_kernels[0], architecture.conv_strides[0], padding="same", name="decoder_output"
    )(x)
    return keras.Model(inputs, x_hat, name="decoder")


def join(encoder: keras.Model, decoder: keras.Model) -> keras.Model:
    """Return spectrograms -> reconstructions."""
    return keras.Model(encoder.input, decoder(encoder.output), name="autoencoder")


def join_variational(encoder: keras.Model, decoder: keras.Model) -> keras.Model:
    """Return spectrograms and noise -> reconstructions of latent vectors that are drawn, and KL divergences."""
    mean = encoder.output
    log_variance = Dense(mean.shape[1], name="encoder_log_variance")(encoder.get_layer("encoder_flatten").output)
    noise = keras.Input(mean.shape[1:], name="noise")
    z = mean + keras.ops.exp(log_variance / 2) * noise
    # Of N(mean, variance) from N(0, 1), summed over the latent values.
    divergence = keras.ops.sum(mean**2 + keras.ops.exp(log_variance) - 1 - log_variance, axis=1) / 2
    return keras.Model([encoder.input, noise], [decoder(z), divergence], name="autoencoder")


def _normalise_and_activate(x: Any, name: str) -> Any:
    """Return x through batch normalisation and ReLU; the convolution before needs no bias of its own."""
    x = SynchronisedBatchNormalization(
        momentum=_BATCH_NORM_MOMENTUM, epsilon=BATCH_NORM_EPSILON, name=name.format("bn")
    )(x)
    return keras.layers.ReLU(name=name.format("relu"))(x)
