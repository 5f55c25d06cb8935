"""Sound of MP4, Matroska and others: the samples that were put in, however they are asked for."""

import importlib.metadata
from dataclasses import replace

import numpy as np
import pytest
import scipy.signal

from pipeline import containers, planner
from pipeline.containers import ContainerFile
from pipeline.errors import AudioError
from pipeline.isolation import IsolatedLoader
from pipeline.loader import Loader
from pipeline.padder import Padder
from tests.containers import write_container
from tests.sounds import cut, digest, sine, write, write_corpus

# Containers and codecs that keep every bit of 16, and the demuxer that reads them.
LOSSLESS = [
    ("m4a", "alac", "mov"),
    ("mp4", "flac", "mov"),
    ("mov", "pcm_s16le", "mov"),
    ("mkv", "flac", "matroska"),
    ("mkv", "pcm_s16le", "matroska"),
    ("avi", "pcm_s16le", "avi"),
    ("wv", "wavpack", "wv"),
    ("tta", "tta", "tta"),
]
# Those that lose some, and whether the container states delay and padding.
LOSSY = [
    ("m4a", "aac", True),
    ("mp4", "libopus", True),
    ("webm", "libopus", True),
    ("mkv", "aac", False),
    ("aac", "aac", False),
    ("ts", "aac", False),
    ("flv", "aac", False),
    ("avi", "libmp3lame", False),
]
FORMATS = {"aac": "adts", "ts": "mpegts", "m4a": "ipod", "mkv": "matroska"}


@pytest.fixture
def noise(rng):
    """16-bit noise of two channels, a little over 2 s at 44.1 kHz."""
    return rng.integers(-20_000, 20_000, (90_001, 2)).astype(np.float32) / 32_768


def put(path, y, rate, codec, **options):
    return write_container(path, y, rate, codec, FORMATS.get(path.suffix[1:]), **options)


def read(path, start=0, stop=1 << 40, entries=()):
    """Return samples of a container, and how many of its frames were decoded for that."""

    class Counting(ContainerFile):
        n_frames = 0

        def _samples(self, frame):
            self.n_frames += 1
            return super()._samples(frame)

    demuxer = next(demuxer for suffix, _, demuxer in LOSSLESS if path.suffix == f".{suffix}")
    with path.open("rb") as raw, Counting(raw, demuxer) as file:
        file.entries = entries
        file.seek(start)
        return file.read(stop - start), file.n_frames


# --- samples


@pytest.mark.parametrize(("suffix", "codec", "_demuxer"), LOSSLESS)
@pytest.mark.parametrize("n_channels", [1, 2])
def test_lossless_samples_are_those_that_were_put_in(tmp_path, noise, suffix, codec, _demuxer, n_channels):
    y = noise[:, :n_channels]
    path = put(tmp_path / f"a.{suffix}", y, 44_100, codec)
    loader = Loader(44_100, 10.0, mono=False)
    facts, recording = loader.examine(path), loader.load(path)

    np.testing.assert_array_equal(recording.y, y.T)
    assert (facts.source_samples, facts.source_rate, facts.source_channels) == (90_001, 44_100, n_channels)
    assert facts.decoder == recording.decoder == "ffmpeg"
    assert recording.source_samples == 90_001


@pytest.mark.parametrize(("suffix", "codec", "is_exact"), LOSSY)
@pytest.mark.parametrize("n_samples", [96_000, 95_999, 50_001, 1000])
def test_delay_and_padding_are_left_out_where_the_container_states_them(tmp_path, suffix, codec, is_exact, n_samples):
    t = np.arange(n_samples) / 48_000
    y = (0.5 * scipy.signal.chirp(t, 100.0, 2.0, 6000.0)).astype(np.float32)
    path = put(tmp_path / f"a.{suffix}", y, 48_000, codec)
    loader = Loader(48_000, 10.0)
    found = loader.load(path).y[0]

    assert loader.examine(path).source_samples == len(found)
    if is_exact:
        assert len(found) == n_samples
        lags = scipy.signal.correlation_lags(n_samples, n_samples)
        assert lags[scipy.signal.correlate(found, y).argmax()] == 0
    else:
        assert n_samples <= len(found) < n_samples + 5000


def test_rates_are_those_of_the_decoded_sound(tmp_path, noise):
    path = put(tmp_path / "a.m4a", noise, 32_000, "alac")

    np.testing.assert_array_equal(
        Loader(22_050, 1.0).load(path).y, Loader(22_050, 1.0).load(write(tmp_path / "a.wav", noise, 32_000)).y
    )


def test_the_sound_of_a_video(tmp_path, noise):
    path = put(tmp_path / "a.mp4", noise, 44_100, "alac", video=True)

    np.testing.assert_array_equal(Loader(44_100, 10.0, mono=False).load(path).y, noise.T)


def test_the_first_of_two_tracks(tmp_path, noise):
    path = put(tmp_path / "a.mkv", noise, 44_100, "flac", n_tracks=2)

    np.testing.assert_array_equal(Loader(44_100, 10.0, mono=False).load(path).y, noise.T)


@pytest.mark.parametrize("suffix", ["m4a", "mkv"])
def test_a_container_in_memory_and_in_a_child(tmp_path, noise, suffix):
    path = put(tmp_path / f"a.{suffix}", noise, 44_100, {"m4a": "aac", "mkv": "flac"}[suffix])
    loader = Loader(mono=False)
    expected = loader.load(path)

    for found in (loader.load_bytes(path.read_bytes()), *IsolatedLoader(loader).load_many([path])):
        np.testing.assert_array_equal(found.y, expected.y)
        assert replace(found, y=None) == replace(expected, y=None)


# --- stretches


@pytest.mark.parametrize(("suffix", "codec", "_demuxer"), LOSSLESS)
def test_a_stretch_in_the_middle(tmp_path, rng, suffix, codec, _demuxer, monkeypatch):
    monkeypatch.setattr(containers, "_ENTRIES_S", 1)
    y = rng.integers(-20_000, 20_000, (400_000, 2)).astype(np.float32) / 32_768
    path = put(tmp_path / f"a.{suffix}", y, 44_100, codec)
    entries = Loader().examine(path).entries
    whole, n_whole = read(path, entries=entries)
    np.testing.assert_array_equal(whole, y)

    for start, stop in ((0, 10), (1, 50_000), (150_000, 150_001), (300_001, 400_000), (399_999, 400_000)):
        found, n_decoded = read(path, start, stop, entries)
        np.testing.assert_array_equal(found, y[start:stop])
        if entries:  # of 9 s, from 2 s before, and Matroska finds its place to 5 s
            assert n_decoded < n_whole * ((stop - start) / 400_000 + 0.5)
    assert bool(entries) == (_demuxer in {"mov", "matroska"})


@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("webm", "libopus"), ("mkv", "aac"), ("mp4", "libopus")])
def test_lossy_codecs_come_to_their_state(tmp_path, rng, suffix, codec, monkeypatch):
    monkeypatch.setattr(containers, "_ENTRIES_S", 1)
    y = rng.uniform(-0.3, 0.3, 400_000) + sine(300.0, 400_000, 48_000, 0.3)
    path = put(tmp_path / f"a.{suffix}", y, 48_000, codec)
    loader = Loader(48_000, 0.5)
    facts = loader.examine(path)
    n_segments = Padder().count_segments(facts.source_samples, loader.n_samples, 0)
    assert len(facts.entries) > 5

    def stream(segments, facts):
        return np.concatenate([y[0] for block in loader.stream(path, facts, segments, 0) for y in block])

    whole = stream(range(n_segments), replace(facts, entries=()))
    assert len(whole) == facts.source_samples
    for start in (1, 5, 12, n_segments - 1):
        part = stream(range(start, n_segments), facts)
        np.testing.assert_allclose(part, whole[start * loader.n_samples :], rtol=0, atol=1e-4)


def test_rows_do_not_depend_on_how_a_recording_is_split(tmp_path, rng, make_pipeline, open_store, monkeypatch):
    y = rng.integers(-9000, 9000, 700_000).astype(np.float32) / 32_768
    put(tmp_path / "corpus" / "long.m4a", y, 44_100, "alac")
    write(tmp_path / "wav" / "long.m4a", y, 44_100, format="WAV")
    make_pipeline("wav", segment="all", overlap=0.25).preprocess(tmp_path / "wav")
    monkeypatch.setattr(planner, "SHARD_SEGMENTS", 8)
    make_pipeline("out", segment="all", overlap=0.25).preprocess(tmp_path / "corpus")

    assert len(open_store().shards) > 3
    order = np.argsort(open_store().table["segment"].to_numpy())
    np.testing.assert_array_equal(open_store().rows(order), open_store("wav").rows(np.arange(len(order))))


# --- what cannot be used


def refusal(path, **options):
    """Return reason and detail with which a file is refused."""
    with pytest.raises(AudioError, match=r".: .") as caught:
        Loader(44_100, 10.0, **options).load(path)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("m4a", "aac"), ("mov", "pcm_s16le"), ("mkv", "aac"), ("mkv", "flac"), ("webm", "libopus"), ("avi", "pcm_s16le")],
)
@pytest.mark.parametrize("share", [0.1, 0.6, 0.99])
def test_a_container_that_was_cut_off(tmp_path, rng, suffix, codec, share):
    y = rng.uniform(-0.3, 0.3, 200_000)
    path = cut(put(tmp_path / f"a.{suffix}", y, 48_000, codec), share)
    size = path.stat().st_size
    reason, detail = refusal(path)

    assert reason == "truncated"
    assert detail.startswith("header promises ")
    assert detail.endswith(f" bytes, the file holds {size}")


def test_a_file_whose_table_of_contents_stands_first(tmp_path, rng):
    path = put(tmp_path / "a.mov", rng.uniform(-0.3, 0.3, 200_000), 48_000, "aac", movflags="faststart")

    assert refusal(cut(path))[0] == "truncated"
    # Only what is used is judged.
    assert Loader(48_000, 0.5).load(path).y.shape == (1, 24_000)


@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("mkv", "flac"), ("aac", "aac")])
def test_a_damaged_container(tmp_path, rng, suffix, codec):
    path = put(tmp_path / f"a.{suffix}", rng.uniform(-0.3, 0.3, 200_000), 48_000, codec)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = bytes(value ^ 0x5A for value in content[middle : middle + 3000])
    path.write_bytes(content)
    reason, detail = refusal(path)

    assert reason == "damaged"
    assert detail.startswith("FFmpeg says of ")


def test_a_header_and_no_more(tmp_path):
    path = tmp_path / "a.mkv"
    path.write_bytes(b"\x1aE\xdf\xa3" + bytes(50))

    assert refusal(path)[0] == "damaged"


def test_a_video_without_sound(tmp_path, noise):
    import av

    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        pictures = container.add_stream("mpeg4", rate=10)
        pictures.width = pictures.height = 32
        container.mux(pictures.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(pictures.encode(None))

    assert refusal(path) == ("not audio", "MP4 or QuickTime without a track of sound")


def test_sound_of_an_unknown_codec(tmp_path, noise):
    path = put(tmp_path / "a.mkv", noise, 48_000, "flac")
    path.write_bytes(path.read_bytes().replace(b"A_FLAC", b"A_FLOC"))

    assert refusal(path) == ("unsupported", "Matroska or WebM with sound that FFmpeg has no decoder for")


def test_an_atom_that_is_longer_than_any_file(tmp_path, noise):
    path = put(tmp_path / "a.m4a", noise, 48_000, "aac")
    content = path.read_bytes()
    start = content.index(b"free") - 4
    path.write_bytes(content[:start] + b"\0\0\0\1free" + (2**63 + 5).to_bytes(8, "big") + content[start + 16 :])

    assert refusal(path)[0] == "damaged"


def test_sound_that_changes_its_rate(tmp_path, noise):
    slow, fast = (put(tmp_path / f"{rate}.aac", noise, rate, "aac").read_bytes() for rate in (22_050, 44_100))
    (tmp_path / "a.aac").write_bytes(slow + fast)

    assert refusal(tmp_path / "a.aac") == (
        "changing format",
        "from 2 channels at 22050 Hz to 2 at 44100 Hz",
    )


# --- beside other files


@pytest.fixture
def corpus(tmp_path, rng, noise):
    """Return a folder of WAV files, and one that wants FFmpeg."""
    folder = write_corpus(tmp_path / "corpus", rng, 5)
    write_container(folder / "a recording", noise, 44_100, "aac", "ipod")
    return folder


def test_rows_say_what_decoded_them(corpus, make_pipeline, open_store):
    make_pipeline().preprocess(corpus)
    table = open_store().table

    decoders = dict(zip(table["clip_id"].to_pylist(), table["decoder"].to_pylist(), strict=True))
    assert decoders.pop("a recording") == "ffmpeg"
    assert set(decoders.values()) == {"libsndfile"}
    assert open_store().format.versions["av"] == importlib.metadata.version("av")


def test_only_rows_of_ffmpeg_depend_on_its_version(tmp_path, corpus, make_pipeline, open_store, monkeypatch):
    def run():
        counts = make_pipeline().preprocess(corpus).counts
        make_pipeline("fresh").preprocess(corpus)
        assert digest(tmp_path / "out") == digest(tmp_path / "fresh")
        return counts["computed"], counts["reused"]

    def upgrade(version):
        from pipeline import versions

        known = importlib.metadata.version
        monkeypatch.setattr(versions, "_version", lambda name: version if name == "av" else known(name))

    assert run() == (6, 0)
    assert run() == (0, 6)
    upgrade("99.0")
    assert run() == (6, 0)
    assert run() == (0, 6)
    (corpus / "a recording").unlink()
    assert run() == (0, 5)
    assert "av" not in open_store().format.versions
    upgrade("100.0")
    assert run() == (0, 5)
