"""Dense layers, and convolutions without overlap, as matrix products of either precision. Keras and TensorFlow only.

Where the kernel is as large as the stride, every value is looked at once, and the convolution is one product of all
patches with the kernel. TensorFlow computes that several times faster than a convolution, and to the same numbers but
for rounding. The classes are called as Keras' own are, since weights are filed under these names.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import keras
import tensorflow as tf

from training.exchange import sum_early

Precision = Literal["float32", "bfloat16"]

_precision: ContextVar[Precision] = ContextVar("precision", default="float32")


@contextmanager
def multiply_in(precision: Precision) -> Iterator[None]:
    """Let the layers that are called meanwhile, in this thread, multiply in a precision.

    Weights, and what layers are given and return, are of the same type either way. With `bfloat16` both factors of a
    product are rounded to 8 bits, and so is what comes of it; the gradients of such a product are computed alike.
    `float32` leaves layers of double precision as they are.
    """
    token = _precision.set(precision)
    try:
        yield
    finally:
        _precision.reset(token)


def _multiply(a: Any, b: Any, transpose_b: bool = False) -> Any:
    """Return the matrix product, in the precision of the moment."""
    if _precision.get() == "float32":
        return tf.matmul(a, b, transpose_b=transpose_b)
    rounded = tf.matmul(tf.cast(a, tf.bfloat16), tf.cast(b, tf.bfloat16), transpose_b=transpose_b)
    return tf.cast(rounded, a.dtype)


@keras.saving.register_keras_serializable("generative_music")
class Dense(keras.layers.Dense):  # type: ignore[misc]
    """`keras.layers.Dense`, with the same arguments and weights."""

    def call(self, inputs: Any) -> Any:
        """Return the layer's output for inputs (n, n_values)."""
        outputs = _multiply(inputs, sum_early(self.kernel))
        return self.activation(outputs + self.bias if self.use_bias else outputs)


@keras.saving.register_keras_serializable("generative_music")
class Conv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """`keras.layers.Conv2D`, with the same arguments and weights."""

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Return the convolution of inputs (n, height, width, channels), without the bias."""
        kernel = sum_early(kernel)
        _, height, width, channels = inputs.shape
        rows, columns = self.kernel_size
        if not _is_without_overlap(self) or height % rows or width % columns:
            return super().convolution_op(inputs, kernel)
        patches = inputs
        if (rows, columns) != (1, 1):
            patches = tf.reshape(inputs, (-1, height // rows, rows, width // columns, columns * channels))
            patches = tf.transpose(patches, (0, 1, 3, 2, 4))
        size = rows * columns * channels
        products = _multiply(tf.reshape(patches, (-1, size)), tf.reshape(kernel, (size, self.filters)))
        return tf.reshape(products, (-1, height // rows, width // columns, self.filters))


@keras.saving.register_keras_serializable("generative_music")
class Conv2DTranspose(keras.layers.Conv2DTranspose):  # type: ignore[misc]
    """`keras.layers.Conv2DTranspose`, with the same arguments and weights."""

    def call(self, inputs: Any) -> Any:
        """Return the transposed convolution of inputs (n, height, width, channels)."""
        outputs = self._transposed_convolution(inputs, sum_early(self.kernel))
        return self.activation(outputs + self.bias if self.use_bias else outputs)

    def _transposed_convolution(self, inputs: Any, kernel: Any) -> Any:
        _, height, width, channels = inputs.shape
        rows, columns = self.kernel_size
        if not _is_without_overlap(self) or self.output_padding is not None:
            return keras.ops.conv_transpose(
                inputs,
                kernel,
                list(self.strides),
                self.padding,
                self.output_padding,
                self.data_format,
                self.dilation_rate,
            )
        kernel = tf.reshape(kernel, (rows * columns * self.filters, channels))
        patches = _multiply(tf.reshape(inputs, (-1, channels)), kernel, transpose_b=True)
        if (rows, columns) != (1, 1):
            patches = tf.reshape(patches, (-1, height, width, rows, columns * self.filters))
            patches = tf.transpose(patches, (0, 1, 3, 2, 4))
        return tf.reshape(patches, (-1, height * rows, width * columns, self.filters))


def has_overlap(layer: Any) -> bool:
    """Return whether a layer, or one of a model's, is a convolution that is no matrix product."""
    if isinstance(layer, keras.Model):
        return any(has_overlap(each) for each in layer.layers)
    return isinstance(layer, Conv2D | Conv2DTranspose) and not _is_without_overlap(layer)


def _is_without_overlap(layer: Any) -> bool:
    """Return whether a layer's patches touch each other and nothing is between them."""
    return (
        tuple(layer.kernel_size) == tuple(layer.strides)
        and set(layer.dilation_rate) == {1}
        and layer.data_format == "channels_last"
        and getattr(layer, "groups", 1) == 1
    )
