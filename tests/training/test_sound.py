import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.errors import ModelError
from tests.sounds import N_SAMPLES, SAMPLE_RATE, signals, sine, write
from tests.training.conftest import randomised
from training.autoencoder import Autoencoder
from training.description import DESCRIPTION_FILE, Description
from training.sound import SoundAutoencoder

PREPROCESSING = {
    "sample_rate": SAMPLE_RATE,
    "duration_s": 0.74,
    "mono": True,
    "pad_mode": "constant",
    "n_fft": 512,
    "hop_length": 256,
    "drop_nyquist": True,
    "ref": 1.0,
    "amin": 1e-5,
    "top_db": 80.0,
    "range": [0.0, 1.0],
}
DESCRIPTION = Description("key", "digest", PREPROCESSING, None)


class Identity:
    """A network that has learnt everything: what `SoundAutoencoder` asks of one, returning what it is given."""

    def __init__(self, shape=(256, 64, 1)):
        self.architecture = SimpleNamespace(input_shape=shape)

    def encode(self, x):
        assert x.shape[1:] == self.architecture.input_shape
        return x

    def decode(self, z):
        return z


@pytest.fixture
def transparent():
    """Return what reconstructs all that a spectrogram keeps."""
    return SoundAutoencoder(Identity(), DESCRIPTION)


@pytest.fixture(scope="module")
def sound():
    """Return a small network that knows nothing, with the preprocessing that it was made for."""
    return SoundAutoencoder(randomised(Autoencoder((256, 64, 1), [4], [16], [16], 4)), DESCRIPTION)


def cents_off(y, frequency_hz):
    """Return how far the strongest frequency of a signal is from another, in cents."""
    spectrum = np.abs(np.fft.rfft(y * np.hanning(len(y)), 16 * len(y)))
    peak = spectrum.argmax()
    below, here, above = np.log(spectrum[peak - 1 : peak + 2])
    found = (peak + (below - above) / (below - 2 * here + above) / 2) * SAMPLE_RATE / (16 * len(y))
    return 1200 * np.log2(found / frequency_hz)


def level_db(y):
    return 10 * np.log10(np.mean(np.square(y, dtype=np.float64)))


# --- what comes out


@pytest.mark.parametrize("n_samples", [1, 100, N_SAMPLES - 1, N_SAMPLES, N_SAMPLES + 1, 2 * N_SAMPLES + 17])
def test_a_sound_of_any_length_keeps_it(sound, rng, n_samples):
    y = rng.uniform(-0.5, 0.5, (1, n_samples)).astype(np.float32)
    y_hat = sound.reconstruct(y)

    assert y_hat.shape == y.shape
    assert y_hat.dtype == np.float32
    assert np.isfinite(y_hat).all()


def test_a_sound_is_not_trimmed_on_its_way(tmp_path, rng):
    # Though those were that the network learnt from; and it may be as quiet as it likes.
    trimmed = dataclasses.replace(DESCRIPTION, preprocessing=PREPROCESSING | {"trim_db": 20.0, "min_level_db": -10.0})
    y = 1e-2 * rng.uniform(-0.5, 0.5, N_SAMPLES + 999).astype(np.float32)
    y[:9000] = 0.0
    sound = SoundAutoencoder(Identity(), trimmed)
    recording = sound.whole_loader().load(write(tmp_path / "a.wav", y, SAMPLE_RATE, subtype="FLOAT"))

    np.testing.assert_array_equal(recording.y, y[None])
    assert sound.reconstruct(recording.y).shape == (1, N_SAMPLES + 999)


def test_channels_go_through_one_by_one(sound, rng):
    y = rng.uniform(-0.5, 0.5, (2, N_SAMPLES + 4000)).astype(np.float32)
    y_hat = sound.reconstruct(y)

    assert y_hat.shape == y.shape
    for channel in range(2):
        alone = sound.reconstruct(y[channel : channel + 1])[0]
        # The network's last bits depend on how many rows a batch has, and the way back to sound makes more of them in
        # single places: 60 dB below the sound is still far from another channel, which is as loud as this one.
        assert np.linalg.norm(y_hat[channel] - alone) < 1e-3 * np.linalg.norm(alone)
        assert np.linalg.norm(y_hat[1 - channel] - alone) > np.linalg.norm(alone)


def test_silence_stays_silent(sound):
    assert np.abs(sound.reconstruct(np.zeros((1, N_SAMPLES), dtype=np.float32))).max() < 1e-4


def test_half_as_loud_comes_back_half_as_loud(sound, rng):
    """Normalised spectrograms do not know how loud they were; their extremes do."""
    y = rng.uniform(-0.9, 0.9, (1, N_SAMPLES)).astype(np.float32)
    loud, quiet = sound.reconstruct(y), sound.reconstruct(y / 2)

    assert level_db(loud) - level_db(quiet) == pytest.approx(20 * np.log10(2), abs=0.05)


TUNED = [(512, 220.0), (512, 440.0), (512, 3000.0), (512, 8000.0), (1024, 440.0), (1024, 1000.0)]


def make_transparent(n_fft):
    """Return what reconstructs all that a spectrogram of 64 frames keeps."""
    description = dataclasses.replace(DESCRIPTION, preprocessing=PREPROCESSING | {"n_fft": n_fft})
    return SoundAutoencoder(Identity((n_fft // 2, 64, 1)), description)


@pytest.mark.parametrize(("n_fft", "frequency_hz"), TUNED)
def test_an_unmodified_spectrogram_gives_back_the_sines_frequency(n_fft, frequency_hz):
    """An n_fft guessed from the number of bins would be 7 cents sharp."""
    sound = make_transparent(n_fft)
    y = sine(frequency_hz)
    x, min_db, max_db = sound.normaliser.normalise(sound.extractor.extract(y[None]))
    (y_hat,) = sound.invert(x[..., None], min_db, max_db)

    assert y_hat.shape == y.shape
    assert abs(cents_off(y_hat, frequency_hz)) < 3
    assert level_db(y_hat) == pytest.approx(level_db(y), abs=1.0)


@pytest.mark.parametrize("seconds", [0.3, 0.74, 2.5])
@pytest.mark.parametrize(("n_fft", "frequency_hz"), TUNED)
def test_a_transparent_network_gives_back_a_sine_of_any_length(n_fft, frequency_hz, seconds):
    y = sine(frequency_hz, round(seconds * SAMPLE_RATE))
    y_hat = make_transparent(n_fft).reconstruct(y[None])[0]

    assert abs(cents_off(y_hat, frequency_hz)) < 3
    # Where segments fade into each other, phases may cancel.
    assert level_db(y_hat) == pytest.approx(level_db(y), abs=3.0)


def test_a_network_for_another_shape(rng):
    """Spectrograms are shrunk for the network, and what it returns is enlarged again."""
    small = SoundAutoencoder(Identity((128, 32, 1)), dataclasses.replace(DESCRIPTION, target_shape=(128, 32)))
    y = sine(1000.0)
    y_hat = small.reconstruct(y[None])[0]

    assert y_hat.shape == y.shape
    assert abs(cents_off(y_hat, 1000.0)) < 100


# --- decibels


def test_decibels_come_back(transparent, rng):
    S_db = transparent.extractor.extract(np.stack(list(signals(rng).values())))
    x, min_db, max_db = transparent.normaliser.normalise(S_db)

    np.testing.assert_allclose(transparent.to_db(x[..., None], min_db, max_db), S_db, atol=1e-4)


def test_what_leaves_the_range_is_cut_off(transparent):
    x = np.linspace(-1, 2, 256 * 64, dtype=np.float32).reshape(1, 256, 64, 1)
    found = transparent.to_db(x, np.float32([-70]), np.float32([10]))

    np.testing.assert_allclose(found, np.clip(x[..., 0], 0, 1) * 80 - 70, atol=1e-4)


def test_another_range(rng):
    around_zero = SoundAutoencoder(
        Identity(), dataclasses.replace(DESCRIPTION, preprocessing=PREPROCESSING | {"range": [-1, 1]})
    )
    S_db = around_zero.extractor.extract(np.stack(list(signals(rng).values())))
    x, min_db, max_db = around_zero.normaliser.normalise(S_db)

    assert x.min() == -1
    np.testing.assert_allclose(around_zero.to_db(x[..., None], min_db, max_db), S_db, atol=1e-4)


# --- recordings


def test_recordings_are_read_whole_at_the_models_rate(sound, tmp_path, rng):
    path = write(tmp_path / "long.wav", rng.uniform(-0.5, 0.5, (24000, 2)), 8000)
    recording = sound.whole_loader().load(path)

    assert recording.y.shape == (1, 3 * SAMPLE_RATE)
    assert sound.sample_rate == SAMPLE_RATE


# --- the description


@pytest.fixture
def saved(tmp_path, sound):
    """Return a folder as the train stage leaves it."""
    sound.autoencoder.save(tmp_path / "model")
    (tmp_path / "model" / DESCRIPTION_FILE).write_text(DESCRIPTION.to_json())
    return tmp_path / "model"


@pytest.mark.parametrize("target_shape", [None, (128, 32)])
def test_a_description_comes_back(tmp_path, target_shape):
    description = dataclasses.replace(DESCRIPTION, target_shape=target_shape)
    (tmp_path / DESCRIPTION_FILE).write_text(description.to_json())

    assert Description.load(tmp_path) == description


def test_a_saved_model_makes_the_same_sound(saved, sound, rng):
    y = rng.uniform(-0.5, 0.5, (1, N_SAMPLES)).astype(np.float32)

    np.testing.assert_array_equal(SoundAutoencoder.load(saved).reconstruct(y), sound.reconstruct(y))


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match=r"training\.json: missing; the train stage has not finished here"):
        Description.load(tmp_path)
    with pytest.raises(ModelError, match=r"autoencoder\.json: missing, expected a folder that Autoencoder\.save wrote"):
        SoundAutoencoder.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read: Expecting value"),
        ("[]", "cannot be read: "),
        ("7", "cannot be read: "),
        ("{}", "format_version is None, expected 1"),
        ('{"format_version": 2}', "format_version is 2, expected 1"),
        ('{"format_version": 1}', "cannot be read: 'target_shape'"),
        ('{"format_version": 1, "target_shape": null}', "cannot be read: .*missing 3 required"),
        ('{"format_version": 1, "target_shape": null, "x": 1}', "cannot be read: .*'x'"),
    ],
)
def test_a_damaged_description(saved, content, message):
    (saved / DESCRIPTION_FILE).write_text(content)

    with pytest.raises(ModelError, match=rf"training\.json: {message}"):
        SoundAutoencoder.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_fft": None}, "describes no preprocessing: 'n_fft'"),
        ({"range": [1.0, 0.0]}, r"describes no preprocessing: low=1\.0 must be below high=0\.0"),
        ({"range": 1}, "describes no preprocessing: "),
        ({"hop_length": 1024}, "describes no preprocessing: hop_length=1024 must be between 1 and n_fft=512"),
    ],
)
def test_a_description_of_no_preprocessing(saved, changes, message):
    content = json.loads((saved / DESCRIPTION_FILE).read_text())
    content["preprocessing"] = {
        name: value for name, value in (content["preprocessing"] | changes).items() if value is not None
    }
    (saved / DESCRIPTION_FILE).write_text(json.dumps(content))

    with pytest.raises(ModelError, match=rf"training\.json: {message}"):
        SoundAutoencoder.load(saved)
