import hashlib
import os
import re
from dataclasses import replace
from fractions import Fraction

import librosa
import numpy as np
import pytest
import soundfile as sf

from pipeline.errors import AudioError
from pipeline.loader import Loader, count_samples
from tests.pipeline.test_signatures import encodings
from tests.sounds import cut, patch_wav_length, sine, write

RATES = [5000, 8000, 11025, 22050, 44100, 48000, 192000]

# librosa.load imports audioread, and that modules which Python 3.13 no longer has.
librosa_loads = pytest.mark.filterwarnings("ignore:'(aifc|audioop|sunau)' is deprecated:DeprecationWarning")


@pytest.mark.parametrize("sample_rate", RATES)
def test_count_samples_is_the_nearest_whole_number(sample_rate):
    for hundredths in range(1, 1000):
        exact = Fraction(hundredths * sample_rate, 100)

        assert abs(count_samples(hundredths / 100, sample_rate) - exact) <= Fraction(1, 2)


def test_count_samples_where_int_loses_one():
    assert int(0.7 * 22050) == 15434
    assert count_samples(0.7, 22050) == 15435
    assert Loader(22050, 0.7).n_samples == 15435


@librosa_loads
@pytest.mark.parametrize("rate", [5000, 8000, 22050, 44100, 192000])
@pytest.mark.parametrize("n_channels", [1, 2, 8])
@pytest.mark.parametrize("mono", [True, False])
def test_loads_what_librosa_loads(tmp_path, rng, rate, n_channels, mono):
    path = write(tmp_path / "a.wav", rng.uniform(-0.9, 0.9, (rate, n_channels)), rate)
    expected, _ = librosa.load(path, sr=22050, duration=0.74, mono=mono)
    recording = Loader(22050, 0.74, mono).load(path)

    assert recording.y.shape == np.atleast_2d(expected).shape == (1 if mono else n_channels, 16317)
    assert recording.y.dtype == np.float32
    # Both fold in float32 and call soxr, but may sum channels, and feed soxr, in another order.
    np.testing.assert_allclose(recording.y, np.atleast_2d(expected), rtol=0, atol=1e-6)


@librosa_loads
@pytest.mark.parametrize("rate", [11025, 16000, 96000])
def test_loads_what_librosa_loads_given_as_many_samples(tmp_path, rng, rate):
    # librosa's int() reads one sample fewer where duration * rate is no whole number: 8158 for 8158.5.
    path = write(tmp_path / "a.wav", rng.uniform(-0.9, 0.9, rate), rate)
    duration_s = (count_samples(0.74, rate) + 0.5) / rate
    expected, _ = librosa.load(path, sr=22050, duration=duration_s)

    np.testing.assert_allclose(Loader(22050, 0.74).load(path).y[0], expected[:16317], rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", RATES)
def test_a_sine_is_still_that_sine_at_another_rate(tmp_path, rate):
    path = write(tmp_path / "a.wav", sine(1000.0, rate, rate), rate, subtype="FLOAT")
    y = Loader(22050, 0.74).load(path).y[0]

    # The filter rings at either end of what was read.
    np.testing.assert_allclose(y[500:-500], sine(1000.0)[500:-500], rtol=0, atol=2e-4)


def test_channels_are_folded_into_their_mean(tmp_path, rng):
    left = rng.uniform(-0.5, 0.5, 4000)
    y = np.stack([left, -left, np.full(4000, 0.75)], axis=1)
    recording = Loader(8000, 0.5).load(write(tmp_path / "a.wav", y, 8000, subtype="FLOAT"))

    assert recording.source_channels == 3
    np.testing.assert_allclose(recording.y, np.full((1, 4000), 0.25), rtol=0, atol=1e-7)


def test_channels_are_rows_without_folding(tmp_path, rng):
    y = rng.uniform(-0.5, 0.5, (4000, 3)).astype(np.float32)
    recording = Loader(8000, 0.5, mono=False).load(write(tmp_path / "a.wav", y, 8000, subtype="FLOAT"))

    np.testing.assert_array_equal(recording.y, y.T)


def test_a_short_recording_stays_short(tmp_path):
    recording = Loader(22050, 0.74).load(write(tmp_path / "a.wav", sine(100.0, 1000), 22050))

    assert recording.y.shape == (1, 1000)
    assert recording.source_samples == 1000


def test_a_long_recording_is_cut_and_its_length_told(tmp_path):
    recording = Loader(22050, 0.74).load(write(tmp_path / "a.wav", sine(100.0, 100_000, 44100), 44100))

    assert recording.y.shape == (1, 16317)
    assert (recording.source_rate, recording.source_samples) == (44100, 100_000)


def test_sha256_is_that_of_the_file(tmp_path):
    path = write(tmp_path / "a.flac", sine(100.0), 22050)

    assert Loader().load(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["two words.wav", "a#b&c.wav", "日本.flac", b"caf\xe9.wav"])
def test_names_of_all_kinds_open(tmp_path, name):
    path = write(tmp_path / os.fsdecode(name), sine(100.0, 1000))

    assert Loader(8000).load(path).y.shape == (1, 1000)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64"])
def test_formats_of_libsndfile(tmp_path, suffix):
    recording = Loader(8000, 0.74).load(write(tmp_path / f"a.{suffix}", sine(500.0, 5000, 8000)))

    assert (recording.source_rate, recording.source_samples) == (8000, 5000)
    # Ogg and MP3 lose a little.
    np.testing.assert_allclose(recording.y[0][500:-500], sine(500.0, 5000, 8000)[500:-500], rtol=0, atol=0.03)


@pytest.mark.parametrize(("name", "subtype"), encodings())
def test_every_encoding_is_read_as_libsndfile_reads_it(tmp_path, name, subtype):
    path = tmp_path / "a sound"
    # A ramp, of which no sample is like another.
    sf.write(path, np.linspace(-0.9, 0.9, 7000), 8000, format=name, subtype=subtype)
    rate = sf.info(path).samplerate  # which is another in XI
    loader = Loader(rate, 4000 / rate)
    if subtype.startswith("DWVW"):  # soundfile seeks after each read, and libsndfile cannot seek in it
        with pytest.raises(AudioError, match=r"^unsupported: DWVW, of which no part"):
            loader.load(path)
        return
    recording = loader.load(path)
    with sf.SoundFile(path) as file:
        expected, n_total = file.read(4000, dtype="float32"), file.frames

    np.testing.assert_array_equal(recording.y[0], expected)
    assert (recording.source_rate, recording.source_samples) == (rate, n_total)
    assert loader.examine(path).source_samples == n_total


def test_silence_is_sound(tmp_path):
    assert not Loader(8000).load(write(tmp_path / "a.wav", np.zeros(1000))).y.any()


@pytest.mark.parametrize("mono", [True, False])
def test_loading_many_is_loading_each(tmp_path, rng, mono):
    paths = []
    for index in range(80):
        rate = int(rng.choice([5000, 8000, 11025, 22050, 44100, 192_000]))
        shape = (int(rate * rng.uniform(0.001, 1.2)), int(rng.choice([1, 1, 2, 5])))
        paths.append(write(tmp_path / f"{index}.wav", rng.uniform(-0.9, 0.9, shape), rate))
    cut(paths[3])
    paths[7].write_text("this is not a sound")
    loader = Loader(22050, 0.74, mono)
    paths.append(tmp_path / "missing.wav")
    many = loader.load_many(paths)

    assert [index for index, each in enumerate(many) if isinstance(each, AudioError)] == [3, 7, 80]
    for path, found in zip(paths, many, strict=True):
        if isinstance(found, AudioError):
            assert refusal(path) == (found.reason, found.detail)
        else:
            expected = loader.load(path)
            np.testing.assert_array_equal(found.y, expected.y, strict=True)
            assert replace(found, y=None) == replace(expected, y=None)


# --- what cannot be used


def refusal(path, **options):
    """Return reason and detail with which a file is refused."""
    with pytest.raises(AudioError, match=r".: .") as caught:
        Loader(**options).load(path)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value.reason, caught.value.detail


def test_text_under_an_audio_name(tmp_path):
    path = tmp_path / "a.wav"
    path.write_text("this is not a sound\n" * 100)

    assert refusal(path)[0] == "not audio"


def test_an_empty_file(tmp_path):
    path = tmp_path / "a.wav"
    path.touch()

    assert refusal(path)[0] == "not audio"


def test_a_missing_file(tmp_path):
    assert refusal(tmp_path / "a.wav") == ("unreadable", "No such file or directory")


def test_a_folder_under_an_audio_name(tmp_path):
    assert refusal(tmp_path) == ("unreadable", "Is a directory")


def test_a_file_of_no_samples(tmp_path):
    assert refusal(write(tmp_path / "a.wav", np.zeros(0))) == ("empty", "file holds no samples")


def test_a_truncated_wav(tmp_path, rng):
    path = cut(write(tmp_path / "a.wav", rng.uniform(-0.5, 0.5, 5000)))
    n_found = path.stat().st_size - 44

    assert refusal(path) == (
        "truncated",
        f"header promises 10000 bytes of samples, the file holds {n_found}",
    )


# Of the formats that libsndfile writes, those whose headers say nothing of the length.
UNSTATED = {"PAF", "PVF", "IRCAM", "XI"}


@pytest.mark.parametrize("name", sorted(sf.available_formats().keys() - UNSTATED - {"RAW", "SD2"}))
@pytest.mark.parametrize("share", [0.6, 0.98])
def test_truncated_files_of_every_format(tmp_path, rng, name, share):
    n_channels = 1 if name in {"SVX", "WVE", "HTK", "SDS"} else 2
    path = write(tmp_path / "a", rng.uniform(-0.5, 0.5, (20_000, n_channels)), format=name)
    loader = Loader(8000, 100.0)
    assert loader.load(path).y.shape[1] >= 20_000
    loader.examine(path)
    with pytest.raises(AudioError, match=r"^(truncated|not audio|empty): "):
        loader.load(cut(path, share))
    if name not in {"FLAC", "MP3", "SDS"}:  # of which only decoding finds the end
        with pytest.raises(AudioError, match=r"^(truncated|not audio|empty): "):
            loader.examine(path)


@pytest.mark.parametrize("name", sorted(UNSTATED))
def test_where_no_length_is_stated_what_is_there_is_all(tmp_path, rng, name):
    path = write(tmp_path / "a", rng.uniform(-0.5, 0.5, 20_000), format=name)
    whole = Loader(8000, 100.0).load(path).y[0]
    found = Loader(8000, 100.0).load(cut(path)).y[0]

    assert 0.5 * len(whole) < len(found) < 0.7 * len(whole)
    # XI states a rate of its own, so that the end rings.
    n_samples = int(0.9 * len(found))
    np.testing.assert_allclose(found[:n_samples], whole[:n_samples], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "subtype"), [("NIST", "PCM_16"), ("VOC", "PCM_16"), ("AVR", "PCM_16"), ("WVE", "ALAW")]
)
def test_what_a_header_promises_is_said(tmp_path, rng, name, subtype):
    path = write(tmp_path / "a", rng.uniform(-0.5, 0.5, 20_000), format=name, subtype=subtype)
    reason, detail = refusal(cut(path), duration_s=100.0)

    assert reason == "truncated"
    assert re.match(
        r"header (states 20000 samples, the file holds 1\d{4}$"
        r"|promises (20000 bytes of samples, the file holds 1\d{4}|more than the file holds)$)",
        detail,
    )


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_that_ends_with_another_tag(tmp_path, rng, subtype):
    path = write(tmp_path / "a.ogg", rng.uniform(-0.5, 0.5, 20_000), subtype=subtype)
    expected = Loader(8000, 100.0).load(path).y
    path.write_bytes(path.read_bytes() + b"TAG".ljust(128, b"x"))

    np.testing.assert_array_equal(Loader(8000, 100.0).load(path).y, expected)


def test_a_truncated_file_of_which_the_start_is_whole(tmp_path, rng):
    y = rng.integers(-8000, 8000, 5000).astype(np.int16)
    path = cut(write(tmp_path / "a.wav", y))

    # Only what is used is judged: 0.1 s is 800 samples.
    np.testing.assert_array_equal(Loader(8000, 0.1).load(path).y[0], y[:800] / np.float32(32768))


@pytest.mark.parametrize("n_bytes", [0xFFFF_FFFF, 0x7FFF_FFFF, 0x7FFF_F000, 0x8000_0000])
def test_a_wav_from_a_pipe_states_no_length_and_is_whole(tmp_path, rng, n_bytes):
    path = write(tmp_path / "a.wav", rng.uniform(-0.5, 0.5, 5000))
    expected = Loader(8000).load(path).y
    recording = Loader(8000).load(patch_wav_length(path, n_bytes))

    np.testing.assert_array_equal(recording.y, expected)
    assert recording.source_samples == 5000


@pytest.mark.parametrize("n_samples", [5000, 50_000])
def test_a_flac_from_a_pipe_states_no_length_and_is_refused(tmp_path, rng, n_samples):
    # libsndfile cannot seek in it, and says that it has 2**63 - 1 samples.
    path = write(tmp_path / "a.flac", rng.uniform(-0.5, 0.5, n_samples))
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that hold the number of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)

    assert refusal(path)[0] == "unknown length"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_counted(tmp_path, value):
    y = sine(100.0, 1000)
    y[[3, 500]] = value

    assert refusal(write(tmp_path / "a.wav", y, subtype="FLOAT")) == (
        "not finite",
        "2 samples are NaN or infinite",
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_samples_whose_squares_overflow(tmp_path, sign):
    y = sine(100.0, 1000)
    y[7] = sign * 1e30

    assert refusal(write(tmp_path / "a.wav", y, subtype="FLOAT")) == (
        "too loud",
        "a sample is 1e+30, and full scale is 1",
    )


def test_unscaled_integers_are_no_error(tmp_path):
    y = (sine(100.0, 1000) * 2**31).astype(np.float32)

    np.testing.assert_array_equal(Loader(8000).load(write(tmp_path / "a.wav", y, subtype="FLOAT")).y[0], y)


def test_too_few_samples_for_one_at_the_loaders_rate(tmp_path):
    assert refusal(write(tmp_path / "a.wav", np.full(1, 0.5), 192_000)) == (
        "empty",
        "1 samples at 192000 Hz are none at 22050 Hz",
    )


def test_a_header_with_any_rate_gives_sound_or_a_reason(tmp_path, rng):
    path = write(tmp_path / "a.wav", rng.uniform(-0.5, 0.5, 5000))
    content = bytearray(path.read_bytes())
    for rate in (1, 7, 999, 655_350, 10_000_000, 2**31 - 1):
        content[24:28] = rate.to_bytes(4, "little")
        path.write_bytes(content)
        (loaded,) = Loader().load_many([path])
        if isinstance(loaded, AudioError):
            assert loaded.reason == "empty"
        else:
            assert np.isfinite(loaded.y).all()
            assert 1 <= loaded.y.shape[1] <= 16317


def test_any_cut_or_altered_byte_gives_sound_or_a_reason(tmp_path, rng):
    whole = write(tmp_path / "a.wav", rng.uniform(-0.5, 0.5, 300), subtype="FLOAT").read_bytes()
    path = tmp_path / "b.wav"
    for _ in range(500):
        content = bytearray(whole[: rng.integers(1, len(whole) + 1)])
        # Mostly in the header, which is where harm is done.
        for position in rng.integers(0, min(len(content), 100), 2):
            content[position] = rng.integers(256)
        path.write_bytes(content)
        (loaded,) = Loader().load_many([path])
        if isinstance(loaded, AudioError):
            assert loaded.detail
        else:
            assert np.isfinite(loaded.y).all()
            assert loaded.y.size


# --- from memory


@pytest.mark.parametrize(("suffix", "n_channels"), [("wav", 2), ("flac", 1), ("ogg", 2), ("mp3", 1), ("aiff", 1)])
def test_a_file_in_memory_is_as_one_on_disk(tmp_path, rng, suffix, n_channels):
    path = write(tmp_path / f"a.{suffix}", rng.uniform(-0.5, 0.5, (40_000, n_channels)), 44100)
    loader = Loader(22050, 0.74, mono=False)
    found, expected = loader.load_bytes(path.read_bytes()), loader.load(path)

    np.testing.assert_array_equal(found.y, expected.y)
    assert replace(found, y=None) == replace(expected, y=None)


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff"])
def test_what_is_wrong_with_a_file_in_memory(tmp_path, rng, suffix):
    path = cut(write(tmp_path / f"a.{suffix}", rng.uniform(-0.5, 0.5, 9000)))
    path = path if suffix != "flac" else cut(path, 0.9)
    loader = Loader(8000, 10.0)
    with pytest.raises(AudioError) as expected:
        loader.load(path)
    with pytest.raises(AudioError, match=f"^{re.escape(str(expected.value))}$"):
        loader.load_bytes(path.read_bytes())


@pytest.mark.parametrize("content", [b"", b"not a sound", bytes(1000), b"RIFF"])
def test_what_is_no_sound(content):
    with pytest.raises(AudioError, match=r"^not audio: "):
        Loader().load_bytes(content)
