"""Whole recordings as segments: which samples, to the same bytes however the work is split."""

import tracemalloc

import numpy as np
import pytest
import soundfile as sf
import soxr

from pipeline import loader as loading
from pipeline import planner, resampler
from pipeline.corpus import list_clips
from pipeline.errors import AudioError, ParameterError
from pipeline.loader import Loader
from pipeline.padder import Padder
from pipeline.spectrogram import LogSpectrogramExtractor
from tests.sounds import N_SAMPLES, cut, digest, sine, write, write_corpus

OVERLAP = N_SAMPLES // 4
STEP = N_SAMPLES - OVERLAP


def read_all(path, segments=None, loader=None, n_overlap=OVERLAP):
    """Return segments of a recording, by default all, each (n_channels, n_samples)."""
    loader = loader or Loader()
    facts = loader.examine(path)
    n_segments = Padder().count_segments(loader.count_resampled(facts), loader.n_samples, n_overlap)
    wanted = range(n_segments) if segments is None else segments
    return [y for block in loader.stream(path, facts, wanted, n_overlap) for y in block]


def joined(segments, n_total, n_overlap=OVERLAP):
    """Return segments of one channel put together again."""
    y = np.stack([Padder().pad(segment[0], N_SAMPLES) for segment in segments])
    return Padder().join(y, n_overlap, n_total)


@pytest.fixture
def long_wav(tmp_path, rng):
    """A stereo recording of 19.3 s at 44.1 kHz."""
    return write(tmp_path / "long.wav", rng.uniform(-0.9, 0.9, (851_130, 2)), 44_100)


def by_row(store):
    """Return each row by clip, segment and channel, with where it starts."""
    x, columns = store.rows(np.arange(len(store.table))), store.table.to_pydict()
    keys = zip(columns["clip_id"], columns["segment"], columns["channel"], strict=True)
    return dict(zip(keys, zip(x, columns["start_s"], strict=True), strict=True))


# --- which samples


@pytest.mark.parametrize("n_samples", [1, N_SAMPLES - 1, N_SAMPLES, N_SAMPLES + 1, N_SAMPLES + STEP, 200_000])
def test_segments_without_resampling_are_those_of_the_padder(tmp_path, rng, n_samples):
    y = rng.uniform(-0.5, 0.5, n_samples).astype(np.float32)
    found = read_all(write(tmp_path / "a.wav", y, 22_050, subtype="FLOAT"))
    expected = Padder().cut(y, N_SAMPLES, OVERLAP)

    np.testing.assert_array_equal([Padder().pad(segment[0], N_SAMPLES) for segment in found], expected)


@pytest.mark.parametrize("rate", [5000, 8000, 11_025, 16_000, 44_100, 44_101, 48_000, 96_000, 192_000])
def test_resampled_segments_join_to_the_resampled_whole(tmp_path, rng, rate):
    y = rng.uniform(-0.9, 0.9, 7 * rate + 123).astype(np.float32)
    expected = soxr.resample(y, rate, 22_050)
    found = read_all(write(tmp_path / "a.wav", y, rate, subtype="FLOAT"))

    assert sum(map(np.size, found)) == len(expected) + OVERLAP * (len(found) - 1)
    # 1e-5 where soxr has to interpolate its filter, -100 dB; rounding of float32 elsewhere.
    atol = 1e-5 if rate == 44_101 else 2e-6
    np.testing.assert_allclose(joined(found, len(expected)), expected, rtol=0, atol=atol)


def test_a_sine_goes_on_over_the_borders(tmp_path):
    path = write(tmp_path / "a.wav", sine(1000.0, 400_000, 48_000), 48_000, subtype="FLOAT")
    n_total = round(400_000 * 22_050 / 48_000)
    y = joined(read_all(path), n_total)

    assert len(y) == n_total
    np.testing.assert_allclose(y[500:-500], sine(1000.0, n_total)[500:-500], rtol=0, atol=2e-4)


def test_stretches_join_to_the_resampled_whole(tmp_path, rng):
    y = rng.uniform(-0.9, 0.9, 60 * 8000).astype(np.float32)
    expected = soxr.resample(y, 8000, 22_050)
    found = read_all(write(tmp_path / "a.wav", y, 8000, subtype="FLOAT"))

    assert len(found) > 3 * resampler._STRETCH_SEGMENTS
    np.testing.assert_allclose(joined(found, len(expected)), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("rate", [8000, 22_050, 48_000])
@pytest.mark.parametrize("mono", [True, False])
def test_each_segment_is_the_same_whichever_are_asked_for(tmp_path, rng, monkeypatch, rate, mono):
    # So that there are several stretches, and some that are asked for in part.
    monkeypatch.setattr(resampler, "_STRETCH_SEGMENTS", 8)
    path = write(tmp_path / "a.wav", rng.uniform(-0.9, 0.9, (15 * rate, 2)), rate)
    loader = Loader(mono=mono)
    whole = read_all(path, loader=loader)

    assert len(whole) > 20
    for start, stop in ((0, 1), (1, 2), (7, 20), (len(whole) - 1, len(whole)), (3, len(whole))):
        for found, expected in zip(read_all(path, range(start, stop), loader), whole[start:stop], strict=True):
            np.testing.assert_array_equal(found, expected, strict=True)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("wav", {}),
        ("flac", {}),
        ("ogg", {}),
        ("mp3", {}),
        ("aiff", {}),
        ("caf", {"subtype": "ALAC_16"}),
        ("ogg", {"subtype": "OPUS"}),
        ("wav", {"subtype": "IMA_ADPCM"}),
        ("wav", {"subtype": "GSM610"}),  # in which libsndfile cannot seek
        ("au", {"subtype": "G721_32"}),
    ],
)
def test_formats_can_be_entered_in_the_middle(tmp_path, rng, suffix, options):
    path = tmp_path / f"a.{suffix}"
    with sf.SoundFile(path, "w", 8000, 1, **options) as file:  # in parts: libvorbis crashes on long ones
        for _ in range(40):
            file.write(rng.uniform(-0.5, 0.5, 4000))
    whole, part = read_all(path), read_all(path, range(9, 20))

    # A decoder of MP3 rounds otherwise after it was sent elsewhere.
    atol = 1e-6 if suffix == "mp3" else 0
    np.testing.assert_allclose(part, whole[9:20], rtol=0, atol=atol)


def test_a_recording_that_changes_while_it_is_read(long_wav):
    loader = Loader()
    facts = loader.examine(long_wav)
    long_wav.write_bytes(long_wav.read_bytes()[:-4])

    with pytest.raises(AudioError, match=r"^changed: the file was changed while it was read$"):
        list(loader.stream(long_wav, facts, range(2), OVERLAP))


def test_segments_hold_what_can_be_decoded(tmp_path, rng):
    path = write(tmp_path / "a.flac", rng.uniform(-0.5, 0.5, 200_000), 22_050)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : -20_000] = bytes(len(content) - len(content) // 2 - 20_000)
    path.write_bytes(content)

    assert len(read_all(path, range(3))) == 3
    with pytest.raises(AudioError, match=r"^(truncated|not audio): "):
        read_all(path)


def promise(path):
    """Let the header of a FLAC or MP3 file promise some 2 ** 30 samples."""
    content = bytearray(path.read_bytes())
    if path.suffix == ".flac":
        content[21] &= 0xF0
        content[22:26] = (1 << 30).to_bytes(4, "big")
    else:
        start = content.index(b"Xing") + 8
        content[start : start + 4] = (1 << 20).to_bytes(4, "big")
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
def test_nothing_is_planned_for_what_a_header_promises(tmp_path, rng, make_pipeline, suffix):
    corpus = write_corpus(tmp_path / "corpus", rng, 3)
    promise(write(corpus / f"liar.{suffix}", rng.uniform(-0.5, 0.5, 20_000)))
    assert sf.info(corpus / f"liar.{suffix}").frames >= 1 << 29
    planned = []
    report = make_pipeline(segment="all", max_rejected_share=0.5).process_corpus(
        list_clips(corpus), planned=planned.append
    )

    # Or one such file would want more room than there is, and end the run.
    assert planned == [3]
    assert [(each.clip_id, each.reason) for each in report.rejected] == [(f"liar.{suffix}", "truncated")]


# --- rows


def test_recordings_of_one_segment_are_the_rows_of_the_first(tmp_path, rng, make_pipeline, open_store):
    corpus = write_corpus(tmp_path / "corpus", rng, 8)
    write(corpus / "exact.wav", sine(300.0), 22_050)
    write(corpus / "48k.wav", rng.uniform(-0.5, 0.5, (30_000, 3)), 48_000)
    make_pipeline("first").preprocess(corpus)
    make_pipeline("all", segment="all", overlap=0.25).preprocess(corpus)

    first, whole = by_row(open_store("first")), by_row(open_store("all"))
    assert first.keys() == whole.keys()
    for key, (x, start_s) in first.items():
        np.testing.assert_array_equal(whole[key][0], x)
        assert whole[key][1] == start_s == 0.0


@pytest.mark.parametrize("mono", [True, False])
def test_rows_are_the_spectrograms_of_segments(long_wav, make_pipeline, open_store, mono):
    loader = Loader(mono=mono)
    report = make_pipeline(loader=loader, segment="all", overlap=0.25).preprocess(long_wav.parent)
    found = by_row(open_store())
    segments = read_all(long_wav, loader=loader)

    assert report.counts["segments"] == len(segments) == 35
    assert report.counts["rows"] == len(found) == 35 * (1 if mono else 2)
    assert (report.counts["cut"], report.counts["padded"], report.counts["clips"]) == (0, 1, 1)
    for (_, segment, channel), (x, start_s) in found.items():
        y = Padder().pad(segments[segment], N_SAMPLES)[channel]
        S_db = LogSpectrogramExtractor().extract(y)
        np.testing.assert_array_equal(x, (S_db - S_db.min()) * (np.float32(1) / (S_db.max() - S_db.min())))
        assert start_s == pytest.approx(segment * STEP / 22_050, abs=1e-12)


def test_segments_of_a_recording_stand_in_one_split(tmp_path, rng, make_pipeline, open_store):
    for index in range(12):
        write(tmp_path / "corpus" / f"{index}.wav", rng.uniform(-0.5, 0.5, 60_000), 22_050)
    make_pipeline(segment="all", overlap=0.5).preprocess(tmp_path / "corpus")
    splits = {}
    for line in open_store().table.to_pylist():
        splits.setdefault(line["clip_id"], set()).add(line["split"])

    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) == {"train", "validation", "test"}


def test_an_overlap_of_more_than_half(make_pipeline):
    with pytest.raises(ParameterError, match=r"^overlap=0\.6 must be between 0 and 0\.5$"):
        make_pipeline(segment="all", overlap=0.6)


# --- however the work is split


@pytest.fixture
def corpus(tmp_path, long_wav, rng):
    """A folder of short clips, one long recording, and one of a few segments."""
    corpus = write_corpus(tmp_path / "corpus", rng, 10)
    long_wav.rename(corpus / "long.wav")
    write(corpus / "middle.flac", rng.uniform(-0.5, 0.5, 100_000), 48_000)
    return corpus


def test_a_long_recording_is_several_units(corpus, make_pipeline, open_store, monkeypatch):
    make_pipeline("one", segment="all", overlap=0.25).preprocess(corpus)
    monkeypatch.setattr(planner, "SHARD_SEGMENTS", 8)
    make_pipeline("many", segment="all", overlap=0.25).preprocess(corpus)
    one, many = by_row(open_store("one")), by_row(open_store("many"))

    assert len(open_store("one").shards) == 1
    # 35 segments, 8 at a time; the others are short.
    assert sorted(len(shard) for shard in open_store("many").shards) == [3, 8, 8, 8, 8, 14]
    assert one.keys() == many.keys()
    for key, (x, start_s) in one.items():
        np.testing.assert_array_equal(many[key][0], x)
        assert many[key][1] == start_s


def test_bytes_do_not_depend_on_how_many_are_resampled_at_once(tmp_path, corpus, make_pipeline, monkeypatch):
    make_pipeline("default", segment="all", overlap=0.25).preprocess(corpus)
    monkeypatch.setattr(loading, "STACKED", 3)
    make_pipeline("other", segment="all", overlap=0.25).preprocess(corpus)

    assert digest(tmp_path / "default") == digest(tmp_path / "other")


@pytest.mark.usefixtures("cpus")
def test_bytes_do_not_depend_on_workers(tmp_path, corpus, make_pipeline, monkeypatch):
    from pipeline import engine

    monkeypatch.setattr(planner, "SHARD_SEGMENTS", 8)
    monkeypatch.setattr(planner, "SURVEY_CLIPS", 4)
    make_pipeline("serial", segment="all", overlap=0.25).preprocess(corpus)
    for workers in (1, 2):
        make_pipeline(str(workers), segment="all", overlap=0.25).preprocess(
            corpus, lambda function, units, workers=workers: engine.map_units(function, units, workers)
        )
        assert digest(tmp_path / "serial") == digest(tmp_path / str(workers))


def test_of_a_long_recording_all_is_used_or_nothing(corpus, make_pipeline, open_store, monkeypatch):
    monkeypatch.setattr(planner, "SHARD_SEGMENTS", 8)
    path = corpus / "long.wav"
    y, rate = sf.read(path, dtype="float32")
    y[-1000] = np.nan
    write(path, y, rate, subtype="FLOAT")
    report = make_pipeline(segment="all", overlap=0.25, max_rejected_share=0.5).preprocess(corpus)

    assert [(each.clip_id, each.reason) for each in report.rejected] == [("long.wav", "not finite")]
    assert "long.wav" not in open_store().table["clip_id"].to_pylist()
    assert len(list(open_store().folder.glob("*.npy"))) == len(open_store().format.shards) == 1


def test_what_cannot_be_used_is_said_once(corpus, make_pipeline):
    cut(corpus / "middle.flac")
    cut(corpus / "long.wav")
    report = make_pipeline(segment="all", overlap=0.25, max_rejected_share=0.5).preprocess(corpus)

    assert [each.clip_id for each in report.rejected] == ["long.wav", "middle.flac"]
    assert report.counts["clips"] == 10


def test_only_what_changed_is_done_again(tmp_path, corpus, rng, make_pipeline, monkeypatch):
    monkeypatch.setattr(planner, "SHARD_SEGMENTS", 8)
    steps = [
        (lambda: None, (12, 0, 0)),
        (lambda: None, (0, 12, 0)),
        (lambda: (corpus / "long.wav").rename(corpus / "renamed.wav"), (0, 12, 1)),
        (lambda: write(corpus / "more.wav", rng.uniform(-0.5, 0.5, 90_000)), (1, 12, 0)),
        ((corpus / "middle.flac").unlink, (0, 12, 1)),
        (lambda: write(corpus / "renamed.wav", rng.uniform(-0.5, 0.5, 400_000), 22_050), (1, 11, 0)),
    ]
    for index, (change, expected) in enumerate(steps):
        change()
        report = make_pipeline("out", segment="all", overlap=0.25).preprocess(corpus)
        assert tuple(report.counts[name] for name in ("computed", "reused", "removed")) == expected
        make_pipeline(str(index), segment="all", overlap=0.25).preprocess(corpus)
        assert digest(tmp_path / "out") == digest(tmp_path / str(index))


def test_a_longer_recording_takes_no_more_memory(tmp_path, make_pipeline, monkeypatch):
    monkeypatch.setattr(planner, "SHARD_SEGMENTS", 32)
    peaks = []
    for minutes in (1, 8):
        folder = tmp_path / str(minutes)
        folder.mkdir()
        with sf.SoundFile(folder / "a.wav", "w", 22_050, 1) as file:
            for second in range(60 * minutes):
                file.write(sine(440.0 + second, 22_050))
        pipeline = make_pipeline(f"out{minutes}", segment="all", overlap=0.0)
        tracemalloc.start()
        pipeline.preprocess(folder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    assert peaks[1] < 1.1 * peaks[0]
