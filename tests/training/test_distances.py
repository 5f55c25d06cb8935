import numpy as np
import pytest
import scipy.linalg

from tests.sounds import N_SAMPLES, SAMPLE_RATE, sine
from training.distances import (
    RESOLUTIONS,
    bootstrap_interval,
    bootstrap_intervals,
    frechet_distance,
    log_mel_statistics,
    multi_resolution_stft_distance,
    nearest,
    spectral_convergence_db,
)


@pytest.fixture
def y(rng):
    """Return three sounds (3, n_samples)."""
    return np.stack([sine(440.0), 0.3 * sine(1000.0), rng.uniform(-0.3, 0.3, N_SAMPLES).astype(np.float32)])


@pytest.mark.parametrize("gain", [0.5, 0.9, 2.0])
def test_spectral_convergence_of_what_is_louder(y, gain):
    """|S - g S| / |S| is |1 - g|."""
    found = spectral_convergence_db(y, (gain * y).astype(np.float32), 512, 256)

    np.testing.assert_allclose(found, 20 * np.log10(abs(1 - gain)), atol=1e-3)


def test_multi_resolution_distance_of_what_is_louder(y):
    """|1 - g| from the convergence, and |ln g| where nothing is floored, whatever the resolution."""
    noise = y[2:]
    found = multi_resolution_stft_distance(noise, (0.5 * noise).astype(np.float32))

    assert len(RESOLUTIONS) == 3
    np.testing.assert_allclose(found, 0.5 + np.log(2), rtol=1e-3)


def test_the_same_sound_is_not_apart(y):
    assert (spectral_convergence_db(y, y, 512, 256) <= -100).all()
    np.testing.assert_allclose(multi_resolution_stft_distance(y, y), 0, atol=1e-5)


def test_a_sign_is_not_heard(y):
    np.testing.assert_allclose(multi_resolution_stft_distance(y, -y), 0, atol=1e-5)


@pytest.mark.parametrize("n_samples", [1, 100, 1000])
def test_short_sounds_and_silence(n_samples):
    silence = np.zeros((2, n_samples), dtype=np.float32)
    something = np.full((2, n_samples), 0.1, dtype=np.float32)

    for distance in (
        multi_resolution_stft_distance(silence, something),
        multi_resolution_stft_distance(silence, silence),
    ):
        assert distance.shape == (2,)
        assert np.isfinite(distance).all()


# --- intervals


def test_the_interval_covers_the_mean_in_19_of_20_cases(rng):
    """Of normal values, each its own group."""
    groups = [str(number) for number in range(40)]
    covered = [
        low <= 3.0 <= high
        for low, high in (bootstrap_interval(rng.normal(3.0, 1.0, 40), groups, 0) for _ in range(300))
    ]

    assert 0.90 <= np.mean(covered) <= 0.98


def test_rows_of_one_group_count_once(rng):
    """Ten copies of each value say no more than one of each."""
    values = rng.normal(size=30)
    groups = [str(number) for number in range(30)]
    once = bootstrap_interval(values, groups, 0)

    assert bootstrap_interval(np.repeat(values, 10), np.repeat(groups, 10), 0) == pytest.approx(once, rel=1e-9)
    low, high = bootstrap_interval(np.repeat(values, 10), [str(number) for number in range(300)], 0)
    assert high - low < 0.5 * (once[1] - once[0])


def test_columns_are_as_each_alone(rng, monkeypatch):
    values, groups = rng.normal(size=(50, 3)), [str(number // 2) for number in range(50)]
    alone = [bootstrap_interval(column, groups, 5) for column in values.T]

    np.testing.assert_allclose(np.transpose(bootstrap_intervals(values, groups, 5)), alone, rtol=1e-12)
    # However few are drawn at once.
    monkeypatch.setattr("training.distances._DRAWN_AT_ONCE", 75)
    np.testing.assert_allclose(np.transpose(bootstrap_intervals(values, groups, 5)), alone, rtol=1e-12)


def test_one_group_has_no_width():
    assert bootstrap_interval([1.0, 3.0], ["a", "a"], 0) == (2.0, 2.0)


# --- sets of sounds


def test_frechet_distance_of_gaussians(rng):
    """Of the samples' own means and covariances, by the matrix root itself."""
    a, b = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5)), rng.normal(size=(300, 5)) * [1, 2, 3, 4, 5] + 2
    covariances = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(covariances[0] + covariances[1] - 2 * root)

    assert frechet_distance(a, b) == pytest.approx(np.sqrt(expected), rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(np.sqrt(expected), rel=1e-6)


def test_frechet_distance_of_what_is_moved(rng):
    a = rng.normal(size=(20, 64))  # fewer rows than features

    assert frechet_distance(a, a) < 1e-3
    assert frechet_distance(a, a + 3.0) == pytest.approx(3.0 * np.sqrt(64), rel=1e-6)


def test_log_mel_statistics_of_level_and_change():
    magnitude = np.ones((1, 257, 10), dtype=np.float32)
    steady = log_mel_statistics(magnitude, SAMPLE_RATE)
    louder = log_mel_statistics(10 * magnitude, SAMPLE_RATE)
    magnitude[:, :, ::2] *= 10
    changing = log_mel_statistics(magnitude, SAMPLE_RATE)
    n_mels = steady.shape[1] // 2

    np.testing.assert_allclose(louder[:, :n_mels] - steady[:, :n_mels], 20.0, atol=1e-4)
    np.testing.assert_allclose(changing[:, :n_mels] - steady[:, :n_mels], 10.0, atol=1e-4)
    np.testing.assert_allclose(steady[:, n_mels:], 0.0, atol=1e-4)
    np.testing.assert_allclose(changing[:, n_mels:], 10.0, atol=1e-4)


def test_the_nearest_is_that_of_a_loop(rng):
    z, among = rng.normal(size=(20, 4)).astype(np.float32), rng.normal(size=(30, 4)).astype(np.float32)
    place, distance = nearest(z, among)
    expected = [[float(np.linalg.norm(one - other)) for other in among] for one in z]

    assert place.tolist() == np.argmin(expected, axis=1).tolist()
    np.testing.assert_allclose(distance, np.min(expected, axis=1), rtol=1e-4)
