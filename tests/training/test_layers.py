"""Keras' own layers and optimizer are what ours are compared with."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from benchmarks.training import of_keras_layers
from training import layers
from training.adam import Adam
from training.autoencoder import Autoencoder

# Kernel and stride of each: without overlap, 1 x 1, with overlap, with gaps.
SHAPES = [((4, 2), (4, 2)), (1, 1), (3, 1), (1, 2), ((2, 3), (2, 2))]


def pair(name, kernel, strides, **settings):
    """Return Keras' layer of a name and ours, with the same weights."""
    both = [
        getattr(place, name)(5, kernel, strides, padding="same", dtype="float64", **settings)
        for place in (keras.layers, layers)
    ]
    for layer in both:
        layer.build((None, 8, 12, 3))
    weights = [np.random.default_rng(1).normal(size=weight.shape) for weight in both[0].get_weights()]
    for layer in both:
        layer.set_weights(weights)
    return both


def outputs_and_slopes(layer, x):
    """Return what a layer makes of rows, and the gradients of its cubes by rows and weights."""

    @tf.function
    def differentiate(rows):
        with tf.GradientTape() as tape:
            tape.watch(rows)
            y = layer(rows)
            loss = tf.reduce_sum(y**3)
        return [y, *tape.gradient(loss, [rows, *layer.trainable_variables])]

    return differentiate(tf.constant(x))


@pytest.mark.parametrize(("kernel", "strides"), SHAPES)
@pytest.mark.parametrize("settings", [{"use_bias": False}, {"activation": "tanh"}], ids=str)
@pytest.mark.parametrize("name", ["Conv2D", "Conv2DTranspose"])
def test_a_convolution_is_keras_own(name, settings, kernel, strides, rng):
    theirs, ours = pair(name, kernel, strides, **settings)
    x = rng.normal(size=(4, 8, 12, 3))

    for found, expected in zip(outputs_and_slopes(ours, x), outputs_and_slopes(theirs, x), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11 * np.abs(expected).max())
    np.testing.assert_array_equal(ours(x[:0]), theirs(x[:0]))


@pytest.mark.parametrize("name", ["Conv2D", "Conv2DTranspose"])
@pytest.mark.parametrize("settings", [{"dilation_rate": 2}, {"padding": "valid"}], ids=str)
def test_other_settings_are_keras_own(name, settings, rng):
    kernel, strides = (2, 1) if "dilation_rate" in settings else (3, 3)
    both = [getattr(place, name)(5, kernel, strides, **settings) for place in (keras.layers, layers)]
    x = rng.normal(size=(2, 8, 12, 3)).astype(np.float32)
    for layer in both:
        layer.build(x.shape)
    both[1].set_weights(both[0].get_weights())

    np.testing.assert_allclose(both[1](x), both[0](x), rtol=1e-5, atol=1e-5)


def test_weights_are_filed_as_those_of_keras_layers(tmp_path, monkeypatch):
    network = {"conv_filters": [6, 6], "conv_kernels": [4, 1], "conv_strides": [4, 1], "latent_space_dim": 3}
    ours = Autoencoder((16, 8, 1), **network)
    monkeypatch.setattr("training.network.Conv2D", keras.layers.Conv2D)
    monkeypatch.setattr("training.network.Conv2DTranspose", keras.layers.Conv2DTranspose)
    monkeypatch.setattr("training.network.Dense", keras.layers.Dense)
    theirs = Autoencoder((16, 8, 1), **network)
    theirs.model.save_weights(tmp_path / "their.weights.h5")
    ours.model.load_weights(tmp_path / "their.weights.h5")

    x = np.random.default_rng(3).uniform(size=(5, 16, 8, 1)).astype(np.float32)
    np.testing.assert_allclose(ours.reconstruct(x)[0], theirs.reconstruct(x)[0], rtol=1e-4, atol=1e-5)


def test_the_network_of_keras_layers_that_benchmarks_compare_with():
    network = {"conv_filters": [6, 6], "conv_kernels": [4, 1], "conv_strides": [4, 1], "latent_space_dim": 3}
    ours = Autoencoder((16, 8, 1), **network).model
    theirs = of_keras_layers(ours)
    theirs.set_weights(ours.get_weights())
    *first, decoder = theirs.layers
    x = np.random.default_rng(3).uniform(size=(5, 16, 8, 1)).astype(np.float32)

    assert len(decoder.layers) > 5
    assert all(type(layer).__module__.startswith("keras.") for layer in [*first, *decoder.layers])
    assert [layer.name for layer in theirs.layers] == [layer.name for layer in ours.layers]
    np.testing.assert_allclose(theirs(x), ours(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(theirs(x, training=True), ours(x, training=True), rtol=1e-3, atol=1e-4)


# --- products of lower precision


def rounded(values):
    """Return values with the 8 bits that bfloat16 keeps."""
    return np.float64(tf.cast(tf.cast(tf.constant(np.float32(values)), tf.bfloat16), tf.float32))


def layers_of_one_product(rng):
    """Return layers with weights of 8 bits, and rows for each."""
    dense, inner = layers.Dense(6), layers.Conv2D(6, 1, use_bias=False)
    patches, back = layers.Conv2D(6, 4, 4, use_bias=False), layers.Conv2DTranspose(2, 4, 4, use_bias=False)
    for layer, shape in ((dense, (7, 40)), (inner, (3, 4, 4, 9)), (patches, (3, 8, 12, 2)), (back, (3, 2, 3, 9))):
        x = rng.normal(size=shape)
        layer.build(x.shape)
        layer.set_weights([rounded(rng.normal(size=weight.shape)) for weight in layer.get_weights()])
        yield layer, x


def test_factors_and_products_are_rounded_to_8_bits(rng):
    """Of factors that have no more than that, the product is the exact one, but for its own last bit."""
    for layer, x in layers_of_one_product(rng):
        exact = layer(rounded(x).astype(np.float32)).numpy()
        with layers.multiply_in("bfloat16"):
            found = layer(x.astype(np.float32)).numpy()
        products = found - layer.bias.numpy() if layer.use_bias else found

        assert found.dtype == np.float32
        # Not every processor sums in single precision.
        np.testing.assert_allclose(found, exact, atol=2**-6 * np.abs(exact).max(), err_msg=layer.name)
        np.testing.assert_allclose(products, rounded(products), atol=1e-5, err_msg=layer.name)
        assert np.abs(found - layer(x.astype(np.float32))).max() > 1e-4, layer.name


def test_the_precision_ends_with_its_block(rng):
    for layer, x in layers_of_one_product(rng):
        before = layer(x.astype(np.float32)).numpy()
        with pytest.raises(RuntimeError, match="in the middle"), layers.multiply_in("bfloat16"):
            raise RuntimeError("in the middle")
        np.testing.assert_array_equal(layer(x.astype(np.float32)), before)


def test_gradients_of_lower_precision_point_where_the_exact_ones_do(rng):
    for layer, x in layers_of_one_product(rng):
        exact = outputs_and_slopes(layer, x.astype(np.float32))
        with layers.multiply_in("bfloat16"):
            found = outputs_and_slopes(layer, x.astype(np.float32))
        for each, expected in zip(found, exact, strict=True):
            assert each.dtype == tf.float32
            cosine = np.vdot(each, expected) / np.linalg.norm(each) / np.linalg.norm(expected)
            assert 0.999 < cosine < 0.9999999, layer.name


# --- Adam


def descend(optimizer, dtype, number=30):
    """Return two variables after steps along gradients of all sizes, and the state of the optimizer."""
    variables = [keras.Variable(start, dtype=dtype) for start in starts()]
    optimizer.build(variables)

    @tf.function
    def step(*gradients):
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    for gradients in gradients_of_all_sizes(number):
        step(*(tf.constant(each, dtype) for each in gradients))
    return [np.asarray(each.value) for each in [*variables, *optimizer.variables]]


def starts():
    rng = np.random.default_rng(4)
    return [rng.normal(size=shape) for shape in ((7, 3), (4,))]


def gradients_of_all_sizes(number):
    rng = np.random.default_rng(5)
    return [[rng.normal(size=each.shape) * 10.0 ** rng.integers(-6, 3) for each in starts()] for _ in range(number)]


def rate(is_scheduled):
    return keras.optimizers.schedules.CosineDecay(0.0, 20, warmup_target=0.1, warmup_steps=5) if is_scheduled else 0.125


def test_adam_is_what_its_paper_says():
    """Algorithm 1 of Kingma and Ba (2015), with the epsilon of the remark before their section 2.1."""
    expected = []
    for place, start in enumerate(starts()):
        theta, m, v = start, 0.0, 0.0
        for t, gradients in enumerate(gradients_of_all_sizes(30), start=1):
            m = 0.9 * m + 0.1 * gradients[place]
            v = 0.999 * v + 0.001 * gradients[place] ** 2
            theta = theta - 0.125 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
        expected.append(theta)

    for ours, theirs in zip(descend(Adam(rate(False)), "float64"), expected, strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("is_scheduled", [False, True])
def test_adam_is_keras_own(is_scheduled):
    """But for what 1 - 0.999 is, which single precision has with four digits, and of which each takes another form."""
    found, expected = (descend(kind(rate(is_scheduled)), "float32") for kind in (Adam, keras.optimizers.Adam))

    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_adam_goes_on_from_the_state_of_keras_own():
    states = []
    for kinds in ((keras.optimizers.Adam, Adam), (keras.optimizers.Adam, keras.optimizers.Adam)):
        first, second = (kind(1e-2) for kind in kinds)
        descend(first, "float32", 5)
        kept = {}
        first.save_own_variables(kept)
        second.build([keras.Variable(np.zeros(shape)) for shape in ((7, 3), (4,))])
        second.load_own_variables(kept)
        states.append([np.asarray(each.value) for each in second.variables])

    for found, expected in zip(*states, strict=True):
        np.testing.assert_array_equal(found, expected)
