import warnings

import librosa
import numpy as np
import pytest

from pipeline.errors import ParameterError
from pipeline.loader import Loader
from pipeline.padder import Padder
from pipeline.spectrogram import LogSpectrogramExtractor
from tests.sounds import N_SAMPLES, SAMPLE_RATE, signals, sine

SIGNALS = ["sine", "chirp", "white noise", "impulse", "step", "quiet"]


def reference_db(y, n_fft=512, hop_length=256, amin=1e-5, top_db=80.0):
    """Return S_db (n_bins, n_frames) by librosa in double, `top_db` after the Nyquist bin is dropped."""
    magnitude = np.abs(librosa.stft(y.astype(np.float64), n_fft=n_fft, hop_length=hop_length, dtype=np.complex128))
    return librosa.amplitude_to_db(magnitude[:-1], ref=1.0, amin=amin, top_db=top_db)


def worst_errors_db(S_db, expected):
    """Return the largest errors within 40 dB of a frame's peak, and elsewhere."""
    errors = np.abs(S_db - expected)
    near = expected >= expected.max(axis=0) - 40
    return errors[near].max(initial=0.0), errors[~near].max(initial=0.0)


def assert_agrees(S_db, expected, name):
    near_db, far_db = worst_errors_db(S_db, expected)
    assert near_db <= 1e-4, f"{name}: {near_db} dB within 40 dB of a frame's peak"
    assert far_db <= 5e-3, f"{name}: {far_db} dB elsewhere"


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize("top_db", [80.0, 200.0])
def test_decibels_agree_with_double(rng, name, top_db):
    y = signals(rng)[name]

    assert_agrees(LogSpectrogramExtractor(top_db=top_db).extract(y), reference_db(y, top_db=top_db), name)


@pytest.mark.parametrize(("n_fft", "hop_length"), [(2, 1), (64, 64), (1024, 100), (2048, 512)])
def test_decibels_agree_with_double_for_other_frames(rng, n_fft, hop_length):
    extractor = LogSpectrogramExtractor(n_fft, hop_length)
    for name, y in signals(rng).items():
        assert_agrees(extractor.extract(y), reference_db(y, n_fft, hop_length), name)


@pytest.mark.fsdd
def test_decibels_agree_with_double_on_fsdd(fsdd, record_property):
    loader, padder, extractor = Loader(), Padder(), LogSpectrogramExtractor()
    worst = np.zeros(2)
    paths = sorted(fsdd.glob("*.wav"))
    for path, recording in zip(paths, loader.load_many(paths), strict=True):
        y = padder.pad(recording.y[0], loader.n_samples)
        S_db, expected = extractor.extract(y), reference_db(y)
        assert_agrees(S_db, expected, path.name)
        worst = np.maximum(worst, worst_errors_db(S_db, expected))
    record_property("worst_errors_db", worst.tolist())
    assert len(paths) == 3000


@pytest.mark.parametrize("n_fft", [256, 512, 2048])
@pytest.mark.parametrize("frequency_hz", [100.0, 440.0, 1000.0, 5000.0, 10_500.0])
def test_a_sine_peaks_in_its_bin(n_fft, frequency_hz):
    extractor = LogSpectrogramExtractor(n_fft, n_fft // 2)
    S_db = extractor.extract(sine(frequency_hz))
    bin_ = round(frequency_hz * n_fft / SAMPLE_RATE)

    # Frames at the ends hold the zeros around the signal.
    assert set(S_db[:, 1:-2].argmax(axis=0)) == {bin_}
    assert abs(extractor.frequencies_hz(SAMPLE_RATE)[bin_] - frequency_hz) <= SAMPLE_RATE / n_fft / 2


def test_the_level_of_a_sine_in_the_middle_of_a_bin():
    # Hann's window sums to n_fft / 2, and a sine of amplitude 1 is half in the positive frequencies.
    frequency_hz = 20 * SAMPLE_RATE / 512
    S_db = LogSpectrogramExtractor().extract(sine(frequency_hz, amplitude=1.0))

    np.testing.assert_allclose(S_db[20, 1:-2], 20 * np.log10(512 / 4), rtol=0, atol=1e-4)


def test_an_impulse_is_flat():
    y = np.zeros(1024, dtype=np.float32)
    y[512] = 1.0

    # In the middle of its frame, where the window is 1.
    np.testing.assert_allclose(LogSpectrogramExtractor(512, 256).extract(y)[:, 2], 0.0, rtol=0, atol=1e-5)


@pytest.mark.parametrize("drop_nyquist", [True, False])
@pytest.mark.parametrize(("n_fft", "hop_length"), [(512, 256), (512, 512), (100, 7)])
@pytest.mark.parametrize("n_samples", [1, 511, 512, 513, N_SAMPLES])
def test_shape(n_fft, hop_length, drop_nyquist, n_samples):
    extractor = LogSpectrogramExtractor(n_fft, hop_length, drop_nyquist)
    S_db = extractor.extract(sine(440.0, n_samples))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "n_fft=.* is too large for input signal", UserWarning)
        n_bins, n_frames = librosa.stft(sine(440.0, n_samples), n_fft=n_fft, hop_length=hop_length).shape

    assert S_db.shape == (n_bins - drop_nyquist, n_frames) == (extractor.n_bins, extractor.n_frames(n_samples))
    assert S_db.dtype == np.float32
    assert len(extractor.frequencies_hz(SAMPLE_RATE)) == extractor.n_bins


def test_the_nyquist_bin_is_the_last_one(rng):
    y = signals(rng)["white noise"]
    with_nyquist = LogSpectrogramExtractor(drop_nyquist=False, top_db=300.0)
    without = LogSpectrogramExtractor(drop_nyquist=True, top_db=300.0)

    np.testing.assert_array_equal(with_nyquist.extract(y)[:-1], without.extract(y))
    assert with_nyquist.frequencies_hz(SAMPLE_RATE)[-1] == SAMPLE_RATE / 2


def test_the_floor_is_relative_to_each_spectrograms_own_maximum(rng):
    loud, quiet = sine(1000.0), sine(1000.0, amplitude=0.005)
    S_db = LogSpectrogramExtractor(top_db=60.0).extract(np.stack([loud, quiet]))

    np.testing.assert_allclose(S_db.max(axis=(1, 2)) - S_db.min(axis=(1, 2)), 60.0, rtol=0, atol=1e-5)
    # 100 times quieter is 40 dB less.
    np.testing.assert_allclose(S_db[0] - S_db[1], 40.0, rtol=0, atol=1e-3)


def test_silence_is_the_level_of_amin():
    S_db = LogSpectrogramExtractor(amin=1e-5).extract(np.zeros(N_SAMPLES, dtype=np.float32))

    assert len(np.unique(S_db)) == 1
    np.testing.assert_allclose(S_db, -100.0, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ref", [0.5, 1.0, 128.0])
def test_ref_is_the_level_of_0_db(rng, ref):
    y = signals(rng)["white noise"]
    shift_db = LogSpectrogramExtractor().extract(y) - LogSpectrogramExtractor(ref=ref).extract(y)

    np.testing.assert_allclose(shift_db, 20 * np.log10(ref), rtol=0, atol=2e-5)


def test_a_spectrogram_does_not_depend_on_its_neighbours(rng):
    stacked = np.stack(list(signals(rng).values()))
    extractor = LogSpectrogramExtractor()
    together = extractor.extract(stacked)

    np.testing.assert_array_equal(together, [extractor.extract(y) for y in stacked])
    np.testing.assert_array_equal(together, extractor.extract(stacked[::-1])[::-1])
    np.testing.assert_array_equal(together, extractor.extract(stacked.reshape(2, 3, -1)).reshape(together.shape))
    out = np.full((8, *together.shape[1:]), np.nan, dtype=np.float32)
    extractor.extract(stacked, out=out[1:-1])
    np.testing.assert_array_equal(out[1:-1], together)
    assert np.isnan(out[[0, -1]]).all()


def test_the_signal_is_left_as_it_was(rng):
    y = signals(rng)["white noise"]
    before = y.copy()
    LogSpectrogramExtractor().extract(y)

    np.testing.assert_array_equal(y, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_fft": 511}, "n_fft=511 must be even and at least 2"),
        ({"n_fft": 0}, "n_fft=0 must be even and at least 2"),
        ({"hop_length": 513}, "hop_length=513 must be between 1 and n_fft=512"),
        ({"hop_length": 0}, "hop_length=0 must be between 1 and n_fft=512"),
        ({"amin": 1e-20}, "amin=1e-20 must be at least 1.1e-19"),
        ({"amin": float("nan")}, "amin=nan must be at least 1.1e-19"),
    ],
)
def test_contradictory_parameters(options, message):
    with pytest.raises(ParameterError, match=message):
        LogSpectrogramExtractor(**options)


def test_the_least_amin_is_no_infinity():
    S_db = LogSpectrogramExtractor(amin=1.1e-19).extract(np.zeros(N_SAMPLES, dtype=np.float32))

    np.testing.assert_allclose(S_db, 20 * np.log10(1.1e-19), rtol=0, atol=1e-3)


# --- the way back


def peak_hz(y):
    """Return the frequency (Hz) of a signal's strongest component, to a hundredth of a bin."""
    magnitude = np.abs(np.fft.rfft(y * np.hanning(len(y)), 2**20))
    return magnitude.argmax() * SAMPLE_RATE / 2**20


@pytest.mark.parametrize("drop_nyquist", [True, False])
@pytest.mark.parametrize(("n_fft", "hop_length"), [(512, 256), (1024, 256), (512, 128), (2048, 512), (1024, 512)])
@pytest.mark.parametrize("frequency_hz", [110.0, 220.0, 440.0, 1000.0, 3000.0, 8000.0])
def test_a_sine_comes_back_in_tune(n_fft, hop_length, frequency_hz, drop_nyquist):
    extractor = LogSpectrogramExtractor(n_fft, hop_length, drop_nyquist)
    S_db = extractor.extract(sine(frequency_hz))
    y = extractor.invert(S_db, N_SAMPLES, n_iter=8)
    cents = 1200 * np.log2(peak_hz(y) / frequency_hz)

    # An n_fft guessed from 256 bins is 510, and everything 1200 log2(512 / 510) = 6.8 cents sharp. A period of the
    # lowest tone is two fifths of the shortest frame, and its mirror image at -110 Hz bends its peak a little.
    assert abs(cents) < (1.0 if frequency_hz > 200 else 3.0)
    # Half the amplitude of the sine, in its middle.
    assert np.abs(y[4000:12_000]).max() == pytest.approx(0.5, rel=0.05)
    assert y.shape == (N_SAMPLES,)
    assert y.dtype == np.float32


def test_two_sines_come_back_in_tune():
    frequencies_hz = np.array([330.0, 2000.0])
    extractor = LogSpectrogramExtractor()
    y = extractor.invert(extractor.extract(sine(330.0) + 0.3 * sine(2000.0)), N_SAMPLES)
    low = np.fft.irfft(np.fft.rfft(y) * (np.fft.rfftfreq(N_SAMPLES, 1 / SAMPLE_RATE) < 1000), N_SAMPLES)
    found_hz = np.array([peak_hz(low), peak_hz(y - low)])

    np.testing.assert_allclose(1200 * np.log2(found_hz / frequencies_hz), 0.0, atol=1.0)


@pytest.mark.parametrize("name", ["sine", "chirp", "impulse", "white noise"])
def test_more_iterations_come_nearer(rng, name):
    extractor = LogSpectrogramExtractor()
    S_db = extractor.extract(signals(rng)[name])
    errors = [convergence(extractor, S_db, n_iter) for n_iter in (0, 4, 32)]

    assert errors[0] > errors[1] > errors[2]


def convergence(extractor, S_db, n_iter):
    """Return the spectral convergence of what comes back, the measure of Griffin and Lim."""
    again = extractor.extract(extractor.invert(S_db, N_SAMPLES, n_iter=n_iter))
    magnitude, magnitude_again = (10 ** (each.astype(np.float64) / 20) for each in (S_db, again))
    return np.linalg.norm(magnitude_again - magnitude) / np.linalg.norm(magnitude)


@pytest.mark.parametrize(("n_fft", "hop_length"), [(512, 256), (1024, 256)])
@pytest.mark.parametrize("name", ["sine", "chirp", "step"])
def test_it_comes_nearer_than_from_random_phases(rng, name, n_fft, hop_length):
    extractor = LogSpectrogramExtractor(n_fft, hop_length, drop_nyquist=False)
    S_db = extractor.extract(signals(rng)[name])
    magnitude = librosa.db_to_amplitude(S_db)
    from_random = librosa.griffinlim(magnitude, n_iter=16, n_fft=n_fft, hop_length=hop_length, random_state=0)
    again = librosa.db_to_amplitude(extractor.extract(librosa.util.fix_length(from_random, size=N_SAMPLES)))

    error = np.linalg.norm(again - magnitude) / np.linalg.norm(magnitude)
    assert convergence(extractor, S_db, 16) < 0.9 * error


@pytest.mark.parametrize("n_samples", [1000, N_SAMPLES - 200, N_SAMPLES, N_SAMPLES + 50, N_SAMPLES + 5000])
def test_the_length_is_the_one_asked_for(n_samples):
    extractor = LogSpectrogramExtractor()
    S_db = extractor.extract(sine(440.0))
    y = extractor.invert(S_db, n_samples, n_iter=1)
    n_common = min(n_samples, 15_000)

    assert y.shape == (n_samples,)
    assert not y[64 * 256 :].any()
    # The end of the signal alone hears of its length.
    np.testing.assert_allclose(y[:n_common], extractor.invert(S_db, N_SAMPLES, n_iter=1)[:n_common], rtol=0, atol=1e-5)


def test_the_inverse_of_many_is_the_inverse_of_each(rng):
    extractor = LogSpectrogramExtractor()
    S_db = extractor.extract(np.stack([sine(3000.0), sine(5000.0)]))
    y = extractor.invert(S_db, N_SAMPLES, n_iter=8)

    assert y.shape == (2, N_SAMPLES)
    for each, frequency_hz in zip(y, (3000.0, 5000.0), strict=True):
        assert abs(1200 * np.log2(peak_hz(each) / frequency_hz)) < 5
    np.testing.assert_array_equal(y[0], extractor.invert(S_db[0], N_SAMPLES, n_iter=8))


def test_the_same_spectrogram_gives_the_same_sound(rng):
    extractor = LogSpectrogramExtractor()
    S_db = extractor.extract(signals(rng)["white noise"])

    np.testing.assert_array_equal(
        extractor.invert(S_db, N_SAMPLES, n_iter=2), extractor.invert(S_db, N_SAMPLES, n_iter=2)
    )


def test_silence_comes_back_silent():
    extractor = LogSpectrogramExtractor()
    y = extractor.invert(extractor.extract(np.zeros(N_SAMPLES, dtype=np.float32)), N_SAMPLES)

    # A spectrum of magnitude amin = 1e-5 in every bin.
    assert np.abs(y).max() < 1e-4


def test_another_number_of_bins_is_refused():
    with pytest.raises(ParameterError, match="S_db has 257 bins and must have n_bins=256"):
        LogSpectrogramExtractor().invert(np.zeros((257, 64), dtype=np.float32), N_SAMPLES)
