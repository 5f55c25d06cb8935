"""Against librosa's, which is the reference."""

import librosa
import numpy as np
import pytest

from pipeline.griffin_lim import griffin_lim

# Overlaps of a half, of three quarters, none that divides, less than a half, and none.
FRAMES = [(512, 256, 16317), (1024, 256, 16384), (512, 200, 5000), (512, 300, 5000), (128, 128, 2000), (64, 64, 640)]


def magnitude_of(y, n_fft, hop_length):
    return np.abs(librosa.stft(y, n_fft=n_fft, hop_length=hop_length, pad_mode="constant"))


def random_phases(shape, seed):
    """Return what librosa starts from."""
    return np.exp(2j * np.pi * np.random.RandomState(seed).random(shape))


@pytest.mark.parametrize(("n_fft", "hop_length", "n_samples"), FRAMES)
def test_it_is_librosas(rng, n_fft, hop_length, n_samples):
    magnitude = magnitude_of(rng.normal(size=(2, n_samples)), n_fft, hop_length)
    found = griffin_lim(magnitude, random_phases(magnitude.shape, 3), hop_length, n_samples, n_iter=8)
    expected = librosa.griffinlim(
        magnitude, n_iter=8, n_fft=n_fft, hop_length=hop_length, length=n_samples, random_state=3
    )

    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * np.abs(expected).max())


def test_single_precision(rng):
    """Errors grow with each iteration: after few, both precisions are the same sound."""
    magnitude = magnitude_of(rng.normal(size=(1, 16317)), 512, 256)
    phases = random_phases(magnitude.shape, 0)
    double = griffin_lim(magnitude, phases, 256, 16317, n_iter=4)
    single = griffin_lim(magnitude.astype(np.float32), phases.astype(np.complex64), 256, 16317, n_iter=4)

    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, rtol=0, atol=1e-4 * np.abs(double).max())


def test_a_spectrogram_hears_nothing_of_those_beside_it(rng):
    magnitudes = magnitude_of(rng.normal(size=(3, 4000)), 256, 128)
    phases = random_phases(magnitudes.shape, 0)
    found = griffin_lim(magnitudes, phases, 128, 4000, n_iter=3)

    for place in range(3):
        alone = slice(place, place + 1)
        np.testing.assert_array_equal(found[alone], griffin_lim(magnitudes[alone], phases[alone], 128, 4000, n_iter=3))


def test_no_magnitude_is_silence():
    magnitude = np.zeros((1, 129, 10), dtype=np.float32)

    assert not griffin_lim(magnitude, random_phases(magnitude.shape, 0), 128, 1200, n_iter=4).any()
