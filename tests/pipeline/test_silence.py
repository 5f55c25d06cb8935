"""Silence at either end, and recordings that are nothing but quiet: off by default, exact, counted and named."""

import tracemalloc

import librosa
import numpy as np
import pytest
import soundfile as sf

from pipeline import planner, silence
from pipeline.errors import AudioError
from pipeline.loader import Loader
from pipeline.preprocessing import RejectedError
from pipeline.resampler import count_resampled
from pipeline.silence import LevelMeter
from pipeline.stages import inspect
from tests.sounds import N_SAMPLES, digest, sine, write

TRIM_DB = 40.0
MODES = [{"segment": "first"}, {"segment": "all", "overlap": 0.25}]


def between_silences(rng, before, sounding, after, n_channels=1):
    """Return noise (n, n_channels) between two stretches that are 60 dB quieter."""
    y = rng.uniform(-0.9, 0.9, (before + sounding + after, n_channels)).astype(np.float32)
    y[:before] *= 1e-3
    y[before + sounding :] *= 1e-3
    return y


def measured(y, rate, trim_db, n_at_once=None):
    """Return what a meter hears of channels (n_channels, n), a number of steps at a time."""
    meter = LevelMeter(rate)
    n = (n_at_once or 1 + y.shape[1]) * meter.hop_length
    for start in range(0, y.shape[1], n):
        meter.add(y[:, start : start + n])
    return meter.heard(trim_db)


# --- which samples


@pytest.mark.parametrize("rate", [5000, 8000, 22_050, 44_100, 48_000, 192_000])
@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize("trim_db", [10.0, 40.0, 70.0])
def test_it_is_trimmed_as_librosa_does(rng, rate, n_channels, trim_db):
    hop_length = LevelMeter(rate).hop_length
    for _ in range(5):
        stretches = rng.integers(0, 9 * hop_length, 3)
        y = between_silences(rng, *stretches[:2], 1 + stretches[2], n_channels).T
        y[:, 0] += 0.01
        _, expected = librosa.effects.trim(y, top_db=trim_db, frame_length=4 * hop_length, hop_length=hop_length)
        heard = measured(y, rate, trim_db)

        assert [heard.start, heard.stop] == expected.tolist()
        assert heard.peak == np.abs(y[:, heard.start : heard.stop]).max()


def test_frames_are_those_of_librosa_at_the_default_rate():
    assert LevelMeter(22_050).hop_length == 512
    # As long everywhere, to a sample.
    for rate in (8000, 44_100, 48_000, 96_000):
        assert abs(LevelMeter(rate).hop_length / rate - 512 / 22_050) <= 0.5 / rate


@pytest.mark.parametrize("n_at_once", [1, 2, 7])
def test_what_is_heard_does_not_depend_on_the_blocks(rng, n_at_once):
    y = between_silences(rng, 5000, 20_000, 7000, 2).T

    assert measured(y, 22_050, 30.0, n_at_once) == measured(y, 22_050, 30.0)


def test_silence_throughout_is_not_trimmed():
    assert measured(np.zeros((1, 9000), dtype=np.float32), 22_050, 40.0)[:2] == (0, 9000)


# --- rows


@pytest.fixture
def corpora(tmp_path, rng):
    """Recordings of many lengths, and beside them the same cut by librosa, as 32-bit floats; where each was cut."""
    places = {}
    for name, rate, stretches in (
        ("long", 48_000, (70_000, 400_000, 50_000)),
        ("middle", 44_100, (20_000, 50_000, 0)),
        ("same rate", 22_050, (9000, 30_000, 4000)),
        ("short", 8000, (3000, 2000, 3000)),
        ("whole", 8000, (0, 9000, 0)),
    ):
        y = between_silences(rng, *stretches, 2)
        hop_length = LevelMeter(rate).hop_length
        _, (start, stop) = librosa.effects.trim(
            y.T.mean(axis=0), top_db=TRIM_DB, frame_length=4 * hop_length, hop_length=hop_length
        )
        places[f"{name}.wav"] = int(start), int(stop), rate
        write(tmp_path / "whole" / f"{name}.wav", y, rate, subtype="FLOAT")
        write(tmp_path / "cut" / f"{name}.wav", y[start:stop], rate, subtype="FLOAT")
    return places


@pytest.mark.parametrize("options", MODES, ids=str)
@pytest.mark.parametrize("mono", [True, False])
def test_rows_are_those_of_recordings_that_were_cut(
    tmp_path, corpora, make_pipeline, open_store, monkeypatch, options, mono
):
    monkeypatch.setattr(planner, "SHARD_SEGMENTS", 8)
    report = make_pipeline("trimmed", loader=Loader(mono=mono, trim_db=TRIM_DB), **options).preprocess(
        tmp_path / "whole"
    )
    expected = make_pipeline("cut", loader=Loader(mono=mono), **options).preprocess(tmp_path / "cut")
    trimmed, cut = open_store("trimmed"), open_store("cut")

    assert [shard.name for shard in trimmed.format.shards] == [shard.name for shard in cut.format.shards]
    assert report.counts == expected.counts | {"trimmed": 4}
    for line, other in zip(trimmed.table.to_pylist(), cut.table.to_pylist(), strict=True):
        start, stop, rate = corpora[line["clip_id"]]
        assert (line["source_start"], line["source_stop"]) == (start, stop)
        assert (other["source_start"], other["source_stop"]) == (0, other["source_samples"]) == (0, stop - start)
        # In the time of the recording.
        assert line["start_s"] == pytest.approx(other["start_s"] + start / rate, abs=1e-9)


@pytest.mark.parametrize("options", MODES, ids=str)
def test_other_formats_are_trimmed_in_a_child(tmp_path, rng, make_pipeline, open_store, options):
    # As integers, of which all formats make the same floats.
    y = (between_silences(rng, 20_000, 60_000, 10_000) * 2**15).astype(np.int16)
    for suffix in ("wav", "flac", "caf"):
        write(tmp_path / "corpus" / f"a.{suffix}", y, 16_000)
    make_pipeline(loader=Loader(trim_db=TRIM_DB), **options).preprocess(tmp_path / "corpus")
    store = open_store()
    lines = store.table.to_pylist()
    rows = {
        (line["clip_id"], line["segment"]): x for line, x in zip(lines, store.rows(np.arange(len(lines))), strict=True)
    }

    assert lines[0]["source_start"] > 15_000
    for (clip_id, segment), x in rows.items():
        np.testing.assert_array_equal(x, rows[f"{clip_id[:2]}wav", segment])


@pytest.mark.parametrize("options", MODES, ids=str)
def test_only_what_is_new_is_trimmed_again(tmp_path, corpora, rng, make_pipeline, options):
    def run(folder, trim_db):
        report = make_pipeline(folder, loader=Loader(trim_db=trim_db), **options).preprocess(tmp_path / "whole")
        return report.counts["computed"], report.counts["reused"]

    assert run("out", TRIM_DB) == (5, 0)
    (tmp_path / "whole" / "long.wav").rename(tmp_path / "whole" / "other.wav")
    write(tmp_path / "whole" / "new.flac", between_silences(rng, 9000, 9000, 9000), 22_050)
    assert run("out", TRIM_DB) == (1, 5)
    run("fresh", TRIM_DB)
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh")
    assert run("out", TRIM_DB + 1) == (6, 0)
    assert run("out", None) == (6, 0)


def test_bytes_do_not_depend_on_how_much_is_measured_at_once(tmp_path, corpora, make_pipeline, monkeypatch):
    for folder, n_values in (("default", silence._MEASURED_VALUES), ("little", 1)):
        monkeypatch.setattr(silence, "_MEASURED_VALUES", n_values)
        make_pipeline(folder, loader=Loader(trim_db=TRIM_DB), segment="all").preprocess(tmp_path / "whole")

    assert digest(tmp_path / "default") == digest(tmp_path / "little")


@pytest.mark.parametrize("segment", ["first", "all"])
def test_a_longer_recording_takes_no_more_memory(tmp_path, make_pipeline, monkeypatch, segment):
    monkeypatch.setattr(planner, "SHARD_SEGMENTS", 32)
    monkeypatch.setattr(silence, "_MEASURED_VALUES", 1 << 16)
    peaks = []
    for minutes in (1, 8):
        folder = tmp_path / str(minutes)
        folder.mkdir()
        with sf.SoundFile(folder / "a.wav", "w", 8000, 1) as file:
            for second in range(60 * minutes):
                file.write(sine(440.0, 8000, 8000, amplitude=0.5 if second else 1e-4))
        pipeline = make_pipeline(f"out{minutes}", loader=Loader(8000, trim_db=TRIM_DB), segment=segment)
        tracemalloc.start()
        pipeline.preprocess(folder)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    # 12 bytes for 23 ms, twice while they are put together.
    assert peaks[1] - peaks[0] < 0.05 * peaks[0] + 7 * 60 / (512 / 22_050) * 100


@pytest.mark.parametrize("options", MODES, ids=str)
def test_what_was_trimmed_comes_back_at_its_length(tmp_path, corpora, make_pipeline, open_store, options):
    make_pipeline(loader=Loader(trim_db=TRIM_DB), **options).preprocess(tmp_path / "whole")
    store = open_store()
    for clip_id, (start, stop, rate) in corpora.items():
        inspect.write_sound(tmp_path / "a.wav", store, inspect.find(store, clip_id, 0))
        n_heard = count_resampled(stop - start, rate, 22_050)

        assert sf.info(tmp_path / "a.wav").frames == (
            n_heard if options["segment"] == "all" else min(n_heard, N_SAMPLES)
        )


# --- quiet recordings


@pytest.fixture
def levels(tmp_path):
    """A folder of sounds whose highest samples are known, in dB of full scale."""
    for level_db in (-10, -30, -50, -70):
        y = sine(441.0, 22_050, amplitude=10 ** (level_db / 20))
        for suffix in ("wav", "flac"):
            write(tmp_path / "corpus" / f"{-level_db}.{suffix}", y, 22_050, subtype="PCM_24")
    write(tmp_path / "corpus" / "silent.wav", np.zeros(22_050), 22_050)
    return tmp_path / "corpus"


@pytest.mark.parametrize("options", MODES, ids=str)
def test_quiet_recordings_are_left_out_and_named(levels, make_pipeline, open_store, options):
    # Not as what cannot be used, of which nothing is allowed.
    pipeline = make_pipeline(loader=Loader(min_level_db=-40.0), max_rejected_share=0.0, **options)
    report = pipeline.preprocess(levels)

    assert {name: report.counts[name] for name in ("clips", "quiet", "rejected", "silent")} == {
        **{"clips": 4, "quiet": 5, "rejected": 0, "silent": 0}
    }
    assert {(each.clip_id, each.reason, each.detail) for each in report.rejected} == {
        ("silent.wav", "quiet", "its samples are all zero, and min_level_db=-40"),
        *(
            (f"{level}.{suffix}", "quiet", f"its highest sample is -{level}.0 dB of full scale, and min_level_db=-40")
            for level in (50, 70)
            for suffix in ("wav", "flac")
        ),
    }
    assert sorted(set(open_store().table["clip_id"].to_pylist())) == ["10.flac", "10.wav", "30.flac", "30.wav"]


def test_without_a_level_nothing_is_left_out(levels, make_pipeline):
    counts = make_pipeline().preprocess(levels).counts

    assert (counts["clips"], counts["quiet"], counts["trimmed"], counts["silent"]) == (9, 0, 0, 1)


def test_the_level_is_that_of_what_is_used(tmp_path, rng, make_pipeline):
    y = between_silences(rng, 40_000, 20_000, 40_000)
    write(tmp_path / "corpus" / "a.wav", y, 22_050)
    write(tmp_path / "corpus" / "loud.wav", y[40_000:], 22_050)

    def quiet(segment="first", **loading):
        return make_pipeline(loader=Loader(**loading), segment=segment).preprocess(tmp_path / "corpus").counts["quiet"]

    assert quiet(min_level_db=-20.0) == 1
    assert quiet(min_level_db=-20.0, trim_db=TRIM_DB) == quiet("all", min_level_db=-20.0) == 0


def test_nothing_that_is_loud_enough(levels, make_pipeline):
    with pytest.raises(
        RejectedError,
        match=r"^none of 9 recordings is left; the first is '10\.flac': quiet: its highest sample is -10\.0",
    ):
        make_pipeline(loader=Loader(min_level_db=-1.0)).preprocess(levels)


def test_what_cannot_be_used_is_told_apart(levels, make_pipeline):
    (levels / "text.wav").write_text("this is not a sound")
    with pytest.raises(RejectedError, match=r"^1 of 10 recordings cannot be used, .*'text\.wav': not audio: "):
        make_pipeline(loader=Loader(min_level_db=-40.0), max_rejected_share=0.0).preprocess(levels)
    counts = make_pipeline(loader=Loader(min_level_db=-40.0), max_rejected_share=0.1).preprocess(levels).counts

    assert (counts["clips"], counts["quiet"], counts["rejected"]) == (4, 5, 1)


def test_what_is_cut_off_is_refused_wherever_it_is_heard(tmp_path, rng):
    path = write(tmp_path / "a.wav", between_silences(rng, 0, 40_000, 20_000), 22_050)
    path.write_bytes(path.read_bytes()[:-9000])

    assert Loader().load(path).y.shape == (1, N_SAMPLES)
    with pytest.raises(AudioError, match=r"^truncated: header promises"):
        Loader(trim_db=TRIM_DB).load(path)
