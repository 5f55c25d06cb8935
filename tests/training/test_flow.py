import dataclasses

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from training.flow import Flow, FlowTraining


def randomised(n_dim, n_couplings=3, seed=0, scale=0.3):
    """Return a flow that bends."""
    rng = np.random.default_rng(seed)
    flow = Flow.identity(n_dim, n_couplings, rng)
    weights = {name: value + scale * rng.normal(size=value.shape) for name, value in flow.weights().items()}
    return dataclasses.replace(flow, **weights)


def banana(rng, n):
    """Return points (n, 2) along a parabola, of mean 0 and variance 1."""
    u = rng.normal(size=(n, 2))
    return np.column_stack([u[:, 0], (u[:, 0] ** 2 - 1 + 0.3 * u[:, 1]) / np.sqrt(2.09)])


def banana_log_likelihood(x):
    away = (np.sqrt(2.09) * x[:, 1] - x[:, 0] ** 2 + 1) / 0.3
    return -(x[:, 0] ** 2 + away**2) / 2 - np.log(2 * np.pi) + np.log(np.sqrt(2.09) / 0.3)


def test_a_flow_that_changes_nothing_is_the_normal_distribution(rng):
    x = rng.normal(size=(50, 5)) * 3
    expected = multivariate_normal(np.zeros(5)).logpdf(x)

    for n_couplings in (0, 4):
        flow = Flow.identity(5, n_couplings, np.random.default_rng(0))
        y, log_volume = flow.forward(x)
        np.testing.assert_array_equal(y, x)
        np.testing.assert_array_equal(log_volume, 0.0)
        np.testing.assert_allclose(flow.log_likelihood(x), expected, rtol=1e-12)


def test_one_coupling_by_hand(rng):
    """Networks of constants: half of the values is scaled by exp(0.7) after 1.5 was added, and so is the Gaussian."""
    flow = Flow.identity(4, 1, np.random.default_rng(0))
    flow.biases_out[0] = [2 * np.arctanh(0.35)] * 2 + [1.5] * 2
    changed = flow.order[0, 2:]
    x = rng.normal(size=(20, 4))
    mean, spread = np.zeros(4), np.ones(4)
    mean[changed], spread[changed] = -1.5, np.exp(-0.7)

    np.testing.assert_allclose(
        flow.log_likelihood(x), multivariate_normal(mean, np.diag(spread**2)).logpdf(x), rtol=1e-12
    )


@pytest.mark.parametrize("n_dim", [2, 3, 8, 131])
def test_there_and_back(rng, n_dim):
    flow = randomised(n_dim, 6)
    x = rng.normal(size=(40, n_dim)) * 2
    y, _ = flow.forward(x)

    assert np.abs(y - x).max() > 0.5
    np.testing.assert_allclose(flow.inverse(y), x, atol=1e-9)
    np.testing.assert_allclose(flow.forward(flow.inverse(x))[0], x, atol=1e-9)


@pytest.mark.parametrize("n_dim", [2, 5])
def test_the_volume_is_that_of_the_jacobian(rng, n_dim):
    flow, step = randomised(n_dim, 4), 1e-6
    for x in rng.normal(size=(6, n_dim)):
        around = np.concatenate([x + step * np.eye(n_dim), x - step * np.eye(n_dim)])
        ahead, behind = np.split(flow.forward(around)[0], 2)
        sign, expected = np.linalg.slogdet((ahead - behind) / (2 * step))
        assert abs(sign) == 1
        assert flow.forward(x[None])[1] == pytest.approx(expected, abs=1e-7)


def test_every_value_is_changed(rng):
    """Two couplings already depend on and change all values, an odd number of them too."""
    for n_dim in (2, 5):
        flow = randomised(n_dim, 2)
        x = rng.normal(size=(3, n_dim))
        assert (flow.forward(x)[0] != x).all()


def test_gradients_are_those_of_differences(rng):
    flow, x, step = randomised(5), rng.normal(size=(7, 5)), 1e-6
    found = flow.gradients(x)
    for name, weights in flow.weights().items():
        for place in rng.integers(weights.size, size=25):
            index = np.unravel_index(place, weights.shape)
            losses = []
            for sign in (1, -1):
                moved = weights.copy()
                moved[index] += sign * step
                losses.append(-dataclasses.replace(flow, **{name: moved}).log_likelihood(x).mean())
            assert found[name][index] == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5, abs=1e-7), name


def test_it_integrates_to_one():
    flow = randomised(2, 4, scale=0.1)
    axis = np.linspace(-12, 12, 301)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)

    assert np.exp(logsumexp(flow.log_likelihood(grid))) * (axis[1] - axis[0]) ** 2 == pytest.approx(1.0, abs=1e-3)


def test_it_learns_a_banana(rng):
    """Nearer to the truth than to the Gaussian of the same mean and covariance, on points that it has not seen."""
    training = FlowTraining(banana(rng, 2000), 6, seed=0)
    training.run(600)
    x = banana(rng, 4000)
    gaussian = multivariate_normal(np.zeros(2), np.cov(x.T)).logpdf(x).mean()
    truth, found = banana_log_likelihood(x).mean(), training.flow.log_likelihood(x).mean()

    assert gaussian + 0.5 < found < truth + 0.05
    drawn = training.flow.inverse(rng.normal(size=(4000, 2)))
    # Off the parabola by 0.3, and by 0.8 with the noise of the training; the Gaussian's points are by 2.
    assert np.std(np.sqrt(2.09) * drawn[:, 1] - drawn[:, 0] ** 2) < 1.2


def test_steps_may_be_taken_a_few_at_a_time(rng):
    """And the same seed gives the same bytes."""
    x = rng.normal(size=(150, 4))
    flows = []
    for parts in ((60,), (25, 0, 35)):
        training = FlowTraining(x, 2, seed=5)
        for n_steps in parts:
            training.run(n_steps)
        flows.append(training.flow)

    for name, value in vars(flows[0]).items():
        np.testing.assert_array_equal(getattr(flows[1], name), value)
    other = FlowTraining(x, 2, seed=6)
    other.run(60)
    assert np.abs(other.flow.kernels_out - flows[0].kernels_out).max() > 1e-3


def test_values_that_were_never_seen_stay_finite():
    flow = randomised(6, 6, scale=50.0)
    y, log_volume = flow.forward(np.array([[1e6, -1e6, 0.0, 1e3, 1.0, -1.0]]))

    assert np.isfinite(y).all()
    assert np.abs(log_volume).max() <= 6 * 3 * 2.0
    assert np.isfinite(flow.inverse(y)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"order": np.zeros((3, 5), dtype=np.int64)}, "order holds what is no order of 5 values"),
        ({"order": np.tile(np.arange(5.0), (3, 1))}, "order holds what is no order of 5 values"),
        ({"order": np.zeros((3, 4), dtype=np.int64)}, r"order has shape \(3, 4\), expected \(3, 5\)"),
        ({"biases_in": np.zeros(3)}, r"kernels_in has shape \(3, 2, 64\), expected \(3, 2\)"),
        ({"biases_out": np.zeros((3, 5))}, r"biases_out has shape \(3, 5\), expected \(3, 6\)"),
        ({"kernels_in": np.full((3, 2, 64), np.nan)}, "kernels_in holds what is no finite number"),
        ({"kernels_in": np.zeros((3, 2, 64), dtype=np.int64)}, "kernels_in holds what is no finite number"),
    ],
)
def test_arrays_that_are_no_flow(changes, message):
    randomised(5).check(5)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(randomised(5), **changes).check(5)
