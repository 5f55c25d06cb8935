"""Which model keeps sounds better: distances of sounds, and how models of every kind are compared by them."""

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.errors import CorpusError, ModelError
from tests.sounds import write
from training.comparison import held_out_sounds, load_sound, mean_distance_db
from training.description import DESCRIPTION_FILE, Description
from training.metrics import log_spectral_distance_db
from training.sound import SoundAutoencoder

PREPROCESSING = {
    "sample_rate": 8000,
    "duration_s": 0.12,
    "mono": True,
    "pad_mode": "constant",
    "n_fft": 128,
    "hop_length": 32,
    "drop_nyquist": True,
    "ref": 1.0,
    "amin": 1e-5,
    "top_db": 80.0,
    "range": [0.0, 1.0],
}


class Network:
    """Takes the place of a network: scales spectrograms by a factor."""

    architecture = SimpleNamespace(input_shape=(64, 31, 1))

    def __init__(self, factor):
        self.factor = factor

    def encode(self, x):
        return x.reshape(len(x), -1)

    def decode(self, z):
        return self.factor * z.reshape(len(z), *self.architecture.input_shape)

    def reconstruct(self, x):
        z = self.encode(x)
        return self.decode(z), z


def make_sound(factor, **preprocessing):
    """Return a model that scales the levels of what it hears, and loses nothing else but phases."""
    return SoundAutoencoder(Network(factor), Description("key", "digest", PREPROCESSING | preprocessing, None))


# --- the distance


def test_the_distance_of_a_gain_is_the_gain(rng):
    y = rng.normal(size=(3, 6000)).astype(np.float32)

    for gain_db in (-6.0, 0.0, 12.5):
        distances = log_spectral_distance_db(y, y * np.float32(10 ** (gain_db / 20)), 512, 128)
        np.testing.assert_allclose(distances, abs(gain_db), atol=1e-4)


def test_the_distance_is_that_of_a_loop(rng):
    y, y_hat = rng.normal(size=(2, 2, 1000)).astype(np.float32)
    n_fft, hop = 256, 100
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    expected = []
    for pair in zip(y.astype(np.float64), y_hat.astype(np.float64), strict=True):
        padded = [np.pad(each, n_fft // 2) for each in pair]
        frames = []
        for start in range(0, 1000 + 1, hop):
            power, power_hat = (abs(np.fft.rfft(window * each[start : start + n_fft])) ** 2 for each in padded)
            frames.append(np.sqrt(np.mean((10 * np.log10(power / power_hat)) ** 2)))
        expected.append(np.mean(frames))

    np.testing.assert_allclose(log_spectral_distance_db(y, y_hat, n_fft, hop), expected, rtol=1e-5)


def test_the_distance_of_silence_and_of_short_sounds():
    silence = np.zeros((2, 100), dtype=np.float32)

    np.testing.assert_array_equal(log_spectral_distance_db(silence, silence), [0.0, 0.0])
    # Of a click, whose spectrum is level, nothing is left but the floor, 80 dB below.
    click = silence.copy()
    click[:, 0] = 0.5
    np.testing.assert_allclose(log_spectral_distance_db(click, silence, 128, 1000), 80.0, atol=1e-4)


# --- models


def test_the_held_out_sounds_are_the_test_split(store, data):
    paths = held_out_sounds(store, data.parent / "sounds")
    table = store.table.to_pylist()

    names = [path.relative_to(data.parent / "sounds").as_posix() for path in paths]
    assert names == sorted(row["clip_id"] for row in table if row["split"] == "test")
    with pytest.raises(CorpusError, match="no longer holds 'instrument"):
        held_out_sounds(store, paths[0].parent)


def test_one_sound_is_what_the_model_makes_of_it(rng):
    sound = make_sound(0.9)
    for n_samples in (960, 100, 2500):
        y = rng.normal(scale=0.1, size=n_samples).astype(np.float32)
        (y_hat,) = sound.reconstruct_many([y[None]])
        np.testing.assert_array_equal(y_hat, sound.reconstruct(y[None]))


def test_sounds_in_one_batch_stay_apart(rng):
    levels = [0.5, 0.005, 0.05, 0.0005]
    lengths = [960, 100, 2500, 961]
    signals = [level * rng.normal(size=n).astype(np.float32) for level, n in zip(levels, lengths, strict=True)]
    together = [y_hat[0] for y_hat in make_sound(1.0).reconstruct_many([y[None] for y in signals])]

    assert [len(y_hat) for y_hat in together] == lengths
    for y_hat, level in zip(together, levels, strict=True):
        assert np.sqrt(np.mean(y_hat**2)) == pytest.approx(level, rel=0.3)


@pytest.fixture
def sounds(tmp_path, rng):
    """Return recordings of falling tones with a little noise, at 16 kHz."""
    t = np.arange(2000) / 16000
    tones = [np.exp(-8 * t) * np.sin(2 * np.pi * f * t) + 0.01 * rng.normal(size=2000) for f in (300, 440, 700, 5500)]
    return [write(tmp_path / f"{number}.wav", 0.3 * tone, 16000) for number, tone in enumerate(tones)]


def test_the_model_that_keeps_more_is_nearer(sounds):
    distances = [mean_distance_db(make_sound(factor), sounds, 8000, 0.12) for factor in (1.0, 0.9, 0.5)]

    assert distances == sorted(distances)
    assert 3 * distances[0] < distances[2]


def test_frames_of_another_length_are_no_advantage(sounds):
    """By the error of its own spectrograms the coarse one would be as good: it makes none at all."""
    fine, coarse = make_sound(1.0), make_sound(1.0, n_fft=32, hop_length=32)
    coarse.autoencoder.architecture = SimpleNamespace(input_shape=(16, 31, 1))

    assert mean_distance_db(fine, sounds, 8000, 0.12) < mean_distance_db(coarse, sounds, 8000, 0.12)


def test_what_a_model_of_a_lower_rate_cannot_hold_counts(sounds):
    low = make_sound(1.0)
    high = make_sound(1.0, sample_rate=16000, n_fft=256, hop_length=64)
    high.autoencoder.architecture = SimpleNamespace(input_shape=(128, 31, 1))

    assert mean_distance_db(high, sounds, 16000, 0.12) < mean_distance_db(low, sounds, 16000, 0.12)


def test_a_model_is_found_where_a_registry_has_put_it(autoencoder, store, tmp_path):
    folder = tmp_path / "artifacts/anywhere"
    autoencoder.save(folder)
    description = Description("key", store.digest, store.format.parameters, None)
    (folder / DESCRIPTION_FILE).write_text(description.to_json())
    x = np.zeros((1, 16, 16, 1), dtype=np.float32)

    found = load_sound(tmp_path).autoencoder.reconstruct(x)[0]
    np.testing.assert_array_equal(found, autoencoder.reconstruct(x)[0])
    with pytest.raises(ModelError, match=r"autoencoder\.json: missing"):
        load_sound(tmp_path / "artifacts/anywhere/nothing")
