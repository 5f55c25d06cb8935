"""The step with one replica; `test_two_workers.py` has it with two."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.training.workers import use
from training.adam import Adam
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
    errors = SynchronousStep(model, keras.optimizers.Adam(1e-2)).train_epoch(batches)

    assert errors == (np.mean(losses, dtype=np.float64), None)
    assert len(set(losses)) == len(batches)
    for found, expected in zip(values(model.weights), weights, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_an_optimizer_that_was_used_before_goes_on(batches, by_hand):
    losses, weights = by_hand
    model, optimizer = build(), keras.optimizers.Adam(1e-2)

    assert SynchronousStep(model, optimizer).train_epoch(batches[:3]).mse == np.mean(losses[:3])
    assert SynchronousStep(model, optimizer).train_epoch(batches[3:]).mse == np.mean(losses[3:])
    assert int(optimizer.iterations) == 5
    for found, expected in zip(values(model.weights), weights, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["deterministic", "variational"])
def test_compiled_it_is_the_same_step(batches, kind):
    found = []
    use("float64")
    try:
        for compiled in (True, False):
            model = build() if kind == "deterministic" else build_variational()
            rate = keras.optimizers.schedules.CosineDecay(0.0, 9, warmup_target=1e-2, warmup_steps=2)
            step = SynchronousStep(model, Adam(rate), beta=BETA, seed=4, compiled=compiled)
            assert getattr(step._learn, "_jit_compile", False) is compiled
            found.append([*step.train_epoch(np.float64(batches)), *values(model.variables)])
    finally:
        use("float32")

    for compiled, plain in zip(*found, strict=True):
        if plain is not None:
            np.testing.assert_allclose(compiled, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("kernels", "compiled"), [([2, 2], True), ([2, 3], False)])
def test_only_products_are_compiled_on_a_processor(kernels, compiled):
    model = Autoencoder(SHAPE, **NETWORK | {"conv_kernels": kernels}).model
    step = SynchronousStep(model, keras.optimizers.Adam(1e-2))

    assert getattr(step._learn, "_jit_compile", False) is (compiled or bool(tf.config.list_logical_devices("GPU")))


def train_in(precision, batches):
    """Return a network of matrix products after an epoch in a precision, its step, and the errors on the way."""
    keras.utils.set_random_seed(2)
    autoencoder = Autoencoder(SHAPE, **NETWORK | {"conv_kernels": [4, 1], "conv_strides": [4, 1]})
    step = SynchronousStep(autoencoder.model, Adam(1e-2), precision=precision)
    return autoencoder, step, step.train_epoch(batches).mse


def test_in_lower_precision_it_is_nearly_the_same_step_and_the_same_each_time(batches):
    (_, _, exact), (first, _, mse), (second, _, again) = (
        train_in(precision, batches) for precision in ("float32", "bfloat16", "bfloat16")
    )

    assert mse == again != exact
    assert mse == pytest.approx(exact, rel=0.02)
    for found, expected in zip(values(second.model.weights), values(first.model.weights), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


def test_evaluation_is_of_the_network_as_it_is_saved(batches):
    autoencoder, step, _ = train_in("bfloat16", batches)
    x_hat, _ = autoencoder.reconstruct(batches[0])

    assert step.evaluate(batches[:1]).mse == pytest.approx(np.mean((np.float64(x_hat) - batches[0]) ** 2), rel=1e-6)


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


# --- a variational network

BETA = 0.5


def build_variational():
    keras.utils.set_random_seed(2)
    return Autoencoder(SHAPE, **NETWORK, variational=True).model


@pytest.fixture(scope="module")
def variational_in_double():
    """Return a step of plain gradient descent with a variational network of doubles."""
    use("float64")
    try:
        return SynchronousStep(build_variational(), keras.optimizers.SGD(0.125), beta=BETA, seed=9)
    finally:
        use("float32")


def test_gradients_are_slopes_of_error_and_weighted_divergence(variational_in_double, batches):
    step, x = variational_in_double, np.float64(batches[0])
    model, noise = step._model, np.asarray(step._noise(tf.constant(x)))
    variables = model.trainable_variables
    before, gradients = values(variables), step.gradients(x)

    losses = []
    for step_size in (-1e-7, 1e-7):
        for variable, value, gradient in zip(variables, before, gradients, strict=True):
            variable.assign(value + step_size * gradient)
        x_hat, divergence = (np.asarray(each) for each in model([x, noise], training=True))
        losses.append(np.mean((x_hat - x) ** 2) + BETA * np.mean(divergence) / 64)
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)

    squared_length = sum(float(np.sum(gradient**2)) for gradient in gradients)
    assert (losses[1] - losses[0]) / 2e-7 == pytest.approx(squared_length, rel=1e-6)
    trained = step.train_epoch([x])
    assert trained.kl > 0.01
    assert step.loss(trained) == pytest.approx(np.mean(losses), rel=1e-6)


def test_noise_follows_from_seed_and_step_and_is_another_for_every_row(batches):
    def errors(seed):
        # With a learning rate of zero only the noise makes one step another than the next.
        step = SynchronousStep(build_variational(), keras.optimizers.SGD(0.0), beta=BETA, seed=seed)
        return [step.train_epoch([batches[0]]).mse for _ in range(3)], step._noise(tf.zeros([4000, *SHAPE]))

    (found, noise), (again, _), (other, _) = errors(0), errors(0), errors(1)
    assert found == again
    assert len({*found, *other}) == 6
    assert np.std(noise) == pytest.approx(1, abs=0.02)
    np.testing.assert_allclose(np.cov(np.transpose(noise)), np.eye(3), atol=0.1)


def test_the_divergence_weighs_as_beta_says(batches):
    """Training brings down the error alone where beta is next to nothing, and the divergence where it is great."""

    def train(beta):
        step = SynchronousStep(build_variational(), keras.optimizers.Adam(1e-2), beta=beta)
        return [step.train_epoch(batches) for _ in range(8)]

    little, much = train(1e-6), train(100.0)
    assert much[-1].kl < 0.2 * much[0].kl
    assert little[-1].kl > 5 * much[-1].kl
    assert little[-1].mse < much[-1].mse


def test_evaluation_takes_the_means(batches):
    keras.utils.set_random_seed(2)
    autoencoder = Autoencoder(SHAPE, **NETWORK, variational=True)
    step = SynchronousStep(autoencoder.model, keras.optimizers.SGD(0.0), beta=BETA)
    x = np.concatenate(batches)
    mse = np.mean((np.float64(autoencoder.reconstruct(x)[0]) - x) ** 2)
    divergences = autoencoder.model([x, np.zeros((len(x), 3), np.float32)], training=False)[1]

    for sizes in ([30], [7, 23]):
        errors = step.evaluate(np.split(x, np.cumsum(sizes)[:-1]))
        assert errors.mse == pytest.approx(mse, rel=1e-6)
        assert errors.kl == pytest.approx(np.mean(divergences), rel=1e-5)


# --- what it reports


@pytest.mark.parametrize("sizes", [[20], [8, 8, 4], [19, 1], [1] * 20])
def test_evaluation_is_the_mean_over_rows(step, rng, sizes):
    x = rng.uniform(size=(20, *SHAPE)).astype(np.float32)
    x[-1] *= 30  # so that a mean over batches would show
    x_hat = np.concatenate([np.asarray(step._model(each[None], training=False)) for each in x])
    expected = np.mean((np.float64(x_hat) - x) ** 2)

    assert step.evaluate(np.split(x, np.cumsum(sizes)[:-1])).mse == pytest.approx(expected, rel=1e-6)


def test_evaluation_in_double(in_double, rng):
    x = rng.uniform(size=(11, *SHAPE))
    expected = np.mean((np.asarray(in_double._model(x, training=False)) - x) ** 2)

    assert in_double.evaluate([x[:8], x[8:]]).mse == pytest.approx(expected, rel=1e-13)


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
