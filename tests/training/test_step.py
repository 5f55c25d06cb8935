"""The step with one replica; `test_two_workers.py` has it with two."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.workers import use
from training.autoencoder import Autoencoder
from training.step import SynchronousStep

SHAPE = (8, 8, 1)
NETWORK = {"conv_filters": [3, 4], "conv_kernels": [3, 3], "conv_strides": [2, 2], "latent_space_dim": 3}


def build():
    """Return a network that is the same each time."""
    keras.utils.set_random_seed(2)
    return Autoencoder(SHAPE, **NETWORK).model


def values(variables):
    return [np.array(variable.value) for variable in variables]


@pytest.fixture(scope="module")
def batches():
    """Return five batches (5, 6, 8, 8, 1)."""
    return np.random.default_rng(7).uniform(size=(5, 6, *SHAPE)).astype(np.float32)


@pytest.fixture(scope="module")
def step():
    """Return a step that nobody trains with."""
    return SynchronousStep(build(), keras.optimizers.Adam(1e-2))


# --- one replica takes an ordinary step


@pytest.fixture(scope="module")
def by_hand(batches):
    """Return the loss of each batch and the weights after, as anyone would train a Keras model."""
    model, optimizer = build(), keras.optimizers.Adam(1e-2)

    # With a batch of known size TensorFlow folds constants in another order, and last bits differ.
    @tf.function(input_signature=[tf.TensorSpec((None, *SHAPE))])
    def train(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - x))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return [float(train(x)) for x in batches], values(model.weights)


def test_it_is_the_step_that_anyone_would_write(batches, by_hand):
    losses, weights = by_hand
    model = build()
    mse = SynchronousStep(model, keras.optimizers.Adam(1e-2)).train_epoch(batches)

    assert mse == np.mean(losses, dtype=np.float64)
    assert len(set(losses)) == len(batches)
    for found, expected in zip(values(model.weights), weights, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_an_optimizer_that_was_used_before_goes_on(batches, by_hand):
    losses, weights = by_hand
    model, optimizer = build(), keras.optimizers.Adam(1e-2)

    assert SynchronousStep(model, optimizer).train_epoch(batches[:3]) == np.mean(losses[:3])
    assert SynchronousStep(model, optimizer).train_epoch(batches[3:]) == np.mean(losses[3:])
    assert int(optimizer.iterations) == 5
    for found, expected in zip(values(model.weights), weights, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def in_double():
    """Return a step of plain gradient descent with a network of doubles."""
    use("float64")
    try:
        return SynchronousStep(build(), keras.optimizers.SGD(0.125))
    finally:
        use("float32")


def test_gradients_are_slopes_of_the_loss(in_double, batches):
    """Along the gradient the loss rises by the gradient's squared length, to first order."""
    model, x = in_double._model, np.float64(batches[0])
    before = values(model.trainable_variables)
    gradients = in_double.gradients(x)
    for found, expected in zip(values(model.trainable_variables), before, strict=True):
        np.testing.assert_array_equal(found, expected)

    losses = []
    for step_size in (-1e-7, 1e-7):
        for variable, value, gradient in zip(model.trainable_variables, before, gradients, strict=True):
            variable.assign(value + step_size * gradient)
        losses.append(float(np.mean((np.asarray(model(x, training=True)) - x) ** 2)))
    for variable, value in zip(model.trainable_variables, before, strict=True):
        variable.assign(value)

    squared_length = sum(float(np.sum(gradient**2)) for gradient in gradients)
    assert (losses[1] - losses[0]) / 2e-7 == pytest.approx(squared_length, rel=1e-6)


def test_it_goes_down_the_gradients_that_it_reports(in_double, batches):
    variables = in_double._model.trainable_variables
    for x in np.float64(batches[:2]):
        before, gradients = values(variables), in_double.gradients(x)
        in_double.train_epoch([x])

        for found, value, gradient in zip(values(variables), before, gradients, strict=True):
            np.testing.assert_allclose(found, value - 0.125 * gradient, rtol=1e-14, atol=1e-16)


# --- what it reports


@pytest.mark.parametrize("sizes", [[20], [8, 8, 4], [19, 1], [1] * 20])
def test_evaluation_is_the_mean_over_rows(step, rng, sizes):
    x = rng.uniform(size=(20, *SHAPE)).astype(np.float32)
    x[-1] *= 30  # so that a mean over batches would show
    x_hat = np.concatenate([np.asarray(step._model(each[None], training=False)) for each in x])
    expected = np.mean((np.float64(x_hat) - x) ** 2)

    assert step.evaluate(np.split(x, np.cumsum(sizes)[:-1])) == pytest.approx(expected, rel=1e-6)


def test_evaluation_in_double(in_double, rng):
    x = rng.uniform(size=(11, *SHAPE))
    expected = np.mean((np.asarray(in_double._model(x, training=False)) - x) ** 2)

    assert in_double.evaluate([x[:8], x[8:]]) == pytest.approx(expected, rel=1e-13)


def test_evaluation_changes_nothing(step, batches):
    before = values(step._model.weights)
    error = step.evaluate(batches)

    assert step.evaluate(batches) == error
    for found, expected in zip(values(step._model.weights), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_the_learning_rate_is_that_of_the_next_step(batches):
    schedule = keras.optimizers.schedules.PolynomialDecay(1.0, 10, 0.0)
    step = SynchronousStep(build(), keras.optimizers.SGD(schedule))

    assert step.learning_rate == 1.0
    step.train_epoch(batches)
    assert step.learning_rate == pytest.approx(0.5)
