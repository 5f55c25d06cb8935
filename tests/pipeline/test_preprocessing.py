import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline import planner, room, shards
from pipeline.corpus import Splitter, hash_prefix
from pipeline.errors import CorpusError, StoreError
from pipeline.levels import Leveller
from pipeline.loader import Loader
from pipeline.normaliser import MinMaxNormaliser
from pipeline.preprocessing import RejectedError
from pipeline.spectrogram import LogSpectrogramExtractor
from tests.sounds import N_SAMPLES, cut, digest, signals, sine, write, write_corpus


def rows_by_id(store):
    """Return each row of a store by clip id and channel."""
    x = store.rows(np.arange(len(store.table)))
    columns = store.table.to_pydict()
    return dict(zip(zip(columns["clip_id"], columns["channel"], strict=True), x, strict=True))


def lines_by_id(store):
    """Return each line of a store's table by clip id."""
    return {line["clip_id"]: line for line in store.table.to_pylist()}


@pytest.fixture
def corpus(tmp_path, rng):
    """Return a folder of 18 clips of all kinds that can be used."""
    folder = write_corpus(tmp_path / "corpus", rng, 12)
    for name, y in signals(rng).items():
        write(folder / "other" / f"{name}.wav", y, 22050, subtype="FLOAT")
    return folder


# --- rows and their lines


def test_a_row_is_what_the_five_parts_make_of_a_clip(corpus, make_pipeline, open_store):
    pipeline = make_pipeline()
    report = pipeline.preprocess(corpus)
    store = open_store()
    rows, lines = rows_by_id(store), lines_by_id(store)

    assert report.counts["rows"] == len(rows) == 18
    for clip_id, line in lines.items():
        y = np.zeros(N_SAMPLES, dtype=np.float32)
        loaded = Loader(22050, 0.74).load(corpus / clip_id).y[0]
        y[: len(loaded)] = loaded
        S_db = LogSpectrogramExtractor(512, 256).extract(y)
        x, min_db, max_db = MinMaxNormaliser().normalise(S_db)

        np.testing.assert_array_equal(rows[clip_id, 0], x)
        assert (line["min_db"], line["max_db"]) == (min_db, max_db)
        # The way back, to a rounding of 80 dB in 24 bits.
        np.testing.assert_allclose(
            pipeline.normaliser.denormalise(rows[clip_id, 0], line["min_db"], line["max_db"]), S_db, rtol=0, atol=2e-5
        )


def test_a_line_says_what_is_known_of_its_clip(tmp_path, make_pipeline, open_store):
    y = np.stack([sine(200.0, 44_100, 44_100)] * 2, axis=1)
    path = write(tmp_path / "corpus" / "Flute" / "60_48.wav", y, 44_100)
    splitter = Splitter(r"^(?P<label>[^/]+)/", r"^(?P<group>[^/]+/[^_]+)_")
    make_pipeline(splitter=splitter).preprocess(tmp_path / "corpus")
    line = lines_by_id(open_store())["Flute/60_48.wav"]

    del line["min_db"], line["max_db"]
    assert line.pop("gain_db") == 0.0
    assert line.pop("peak") == pytest.approx(0.5, rel=1e-4)
    assert line == {
        "clip_id": "Flute/60_48.wav",
        "channel": 0,
        "segment": 0,
        "start_s": 0.0,
        "shard": 0,
        "row": 0,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "source_rate": 44_100,
        "source_channels": 2,
        "source_samples": 44_100,
        "source_start": 0,
        "source_stop": 44_100,
        "decoder": "libsndfile",
        "label": "Flute",
        "group": "Flute/60",
        "split": "train",
    }


def test_one_base_name_in_two_folders_is_two_rows(tmp_path, make_pipeline, open_store):
    write(tmp_path / "corpus" / "a" / "x.wav", sine(300.0), 22050)
    write(tmp_path / "corpus" / "b" / "x.wav", sine(5000.0), 22050)
    make_pipeline().preprocess(tmp_path / "corpus")
    rows = rows_by_id(open_store())

    assert rows["a/x.wav", 0][:, 30].argmax() == round(300 * 512 / 22050)
    assert rows["b/x.wav", 0][:, 30].argmax() == round(5000 * 512 / 22050)


@pytest.mark.parametrize("name", ["two words.wav", "a#b&c.wav", "日本.wav", b"caf\xe9.wav"])
def test_names_of_all_kinds_become_rows(tmp_path, make_pipeline, open_store, name):
    write(tmp_path / "corpus" / os.fsdecode(name), sine(300.0))
    make_pipeline().preprocess(tmp_path / "corpus")

    assert list(lines_by_id(open_store())) == [name if isinstance(name, str) else r"caf\xe9.wav"]


def test_a_silent_clip_is_the_ranges_minimum_and_comes_back_exactly(tmp_path, make_pipeline, open_store):
    write(tmp_path / "corpus" / "silent.wav", np.zeros(N_SAMPLES), 22050)
    normaliser = MinMaxNormaliser(0.1, 0.9)
    report = make_pipeline(normaliser=normaliser).preprocess(tmp_path / "corpus")
    (row,), (line,) = rows_by_id(open_store()).values(), lines_by_id(open_store()).values()

    assert report.counts["silent"] == 1
    assert np.unique(row) == np.float32(0.1)
    S_db = normaliser.denormalise(row, line["min_db"], line["max_db"])
    np.testing.assert_array_equal(S_db, LogSpectrogramExtractor().extract(np.zeros(N_SAMPLES, dtype=np.float32)))


def test_without_folding_every_channel_is_a_row(tmp_path, make_pipeline, open_store):
    y = np.stack([sine(frequency_hz) for frequency_hz in (500.0, 2000.0, 8000.0)], axis=1)
    write(tmp_path / "corpus" / "three.wav", y, 22050)
    write(tmp_path / "corpus" / "one.wav", y[:, 1], 22050)
    report = make_pipeline(loader=Loader(mono=False)).preprocess(tmp_path / "corpus")
    rows = rows_by_id(open_store())

    assert list(rows) == [("one.wav", 0), ("three.wav", 0), ("three.wav", 1), ("three.wav", 2)]
    assert (report.counts["clips"], report.counts["rows"], report.counts["folded"]) == (2, 4, 0)
    assert [row[:, 30].argmax() for row in rows.values()] == [
        round(frequency_hz * 512 / 22050) for frequency_hz in (2000.0, 500.0, 2000.0, 8000.0)
    ]
    assert len({line["split"] for line in open_store().table.to_pylist() if line["clip_id"] == "three.wav"}) == 1


def test_a_duration_at_which_int_loses_a_sample(tmp_path, make_pipeline):
    # 0.7 s at 22,050 Hz is 15,435 samples, and int() makes 15,434 of it: 61 frames of 257, or 60.
    extractor = LogSpectrogramExtractor(514, 257, drop_nyquist=False)
    write(tmp_path / "corpus" / "a.wav", sine(300.0, 15_435), 22050)
    pipeline = make_pipeline(loader=Loader(22050, 0.7), extractor=extractor)
    report = pipeline.preprocess(tmp_path / "corpus")

    assert pipeline.shape == report.store.shape == (258, 1 + 15_435 // 257)
    assert (report.counts["padded"], report.counts["cut"]) == (0, 0)


def test_what_was_noticed_is_counted(tmp_path, rng, make_pipeline):
    folder = tmp_path / "corpus"
    write(folder / "exact.wav", sine(300.0), 22050)
    write(folder / "exact at another rate.wav", sine(300.0, 5920, 8000), 8000)
    write(folder / "long.wav", sine(300.0, N_SAMPLES + 1), 22050)
    write(folder / "short.wav", sine(300.0, N_SAMPLES - 1), 22050)
    write(folder / "stereo.wav", np.stack([sine(300.0)] * 2, axis=1), 22050)
    write(folder / "silent.wav", np.zeros(N_SAMPLES), 22050)
    (folder / ".DS_Store").touch()
    (folder / "labels.csv").touch()
    report = make_pipeline().preprocess(folder)

    assert dict(+report.counts) == {
        "clips": 6,
        "rows": 6,
        "segments": 6,
        "computed": 6,
        "ignored": 2,
        "cut": 1,
        "padded": 1,
        "silent": 1,
        "resampled": 1,
        "folded": 1,
        "train": 4,
        "validation": 1,
        "test": 1,
    }
    assert report.rejected == ()
    n_samples = 4 * N_SAMPLES + (N_SAMPLES + 1) + (N_SAMPLES - 1) - N_SAMPLES
    assert report.hours * 3600 == pytest.approx(n_samples / 22050 + 5920 / 8000)


def test_what_was_done_to_clips_is_counted(tmp_path, rng, make_pipeline):
    folder = tmp_path / "corpus"
    for name in ("a", "b/the same"):
        write(folder / f"{name}.wav", sine(300.0, 5000), 22050)
    write(folder / "between silences.wav", np.pad(sine(300.0, 5000), 5000), 22050)
    write(folder / "quiet.wav", sine(300.0, 5000, amplitude=1e-3), 22050)
    write(folder / "text.wav", sine(300.0, 5000), 22050).write_text("text")
    options = {"leveller": Leveller("peak", -6.0), "max_rejected_share": 0.2}
    counts = make_pipeline(loader=Loader(trim_db=40.0, min_level_db=-40.0), **options).preprocess(folder).counts

    assert {name: counts[name] for name in "clips rejected quiet trimmed levelled duplicates padded".split()} == {
        **{"clips": 3, "rejected": 1, "quiet": 1, "trimmed": 1, "levelled": 3, "duplicates": 1, "padded": 3}
    }


def test_the_duration_of_a_clip_that_fills_a_row_exactly_is_no_cut(tmp_path, make_pipeline):
    # 0.33333 s is 7349.93 samples: a clip of 7,350 is a little longer than that, and loses none.
    write(tmp_path / "corpus" / "a.wav", sine(300.0, 7350), 22050)
    loader = Loader(22050, 0.33333)
    assert loader.n_samples == 7350
    report = make_pipeline(loader=loader).preprocess(tmp_path / "corpus")

    assert (report.counts["cut"], report.counts["padded"]) == (0, 0)


def test_splits_are_those_of_the_splitter(corpus, make_pipeline, open_store):
    splitter = Splitter(None, r"^(?P<group>[^/]+)/", None, 0.3, 0.3, seed=3)
    report = make_pipeline(splitter=splitter).preprocess(corpus)
    lines = lines_by_id(open_store())
    expected = dict(zip(lines, splitter.describe(list(lines)), strict=True))

    assert {clip_id: (line["group"], line["split"]) for clip_id, line in lines.items()} == {
        clip_id: (each.group, each.split) for clip_id, each in expected.items()
    }
    assert sum(report.counts[split] for split in ("train", "validation", "test")) == 18


# --- bytes that follow from corpus and parameters alone


def reversed_map(function, units):
    return [function(unit) for unit in reversed(units)]


@pytest.fixture
def small_shards(monkeypatch):
    """Let a shard hold 4 rows of 64 KiB."""
    monkeypatch.setattr(planner, "SHARD_BYTES", 4 << 16)


@pytest.mark.usefixtures("small_shards")
def test_a_corpus_of_several_shards(corpus, make_pipeline, open_store):
    report = make_pipeline().preprocess(corpus)
    store = open_store()
    columns = store.table.to_pydict()

    # 18 rows of 4 to a shard want 5 shards; the next power of two is 8, of which hashes may leave some empty.
    names = [shard.name.split("-")[0] for shard in report.store.shards]
    assert names == sorted({str(hash_prefix(clip_id, 3)) for clip_id in columns["clip_id"]})
    assert 1 < len(names) <= 8
    for clip_id, shard in zip(columns["clip_id"], columns["shard"], strict=True):
        assert names[shard] == str(hash_prefix(clip_id, 3))
    # Rows in a shard are sorted, and lines stand in the order of shards and rows.
    keys = list(zip(columns["shard"], columns["clip_id"], strict=True))
    assert keys == sorted(keys)
    places = list(zip(columns["shard"], columns["row"], strict=True))
    assert places == [(shard, row) for shard, each in enumerate(store.shards) for row in range(len(each))]
    store.verify()


def test_the_number_of_shards_changes_no_row(corpus, make_pipeline, open_store, monkeypatch):
    make_pipeline("one").preprocess(corpus)
    monkeypatch.setattr(planner, "SHARD_BYTES", 1 << 16)
    make_pipeline("many").preprocess(corpus)
    one, many = rows_by_id(open_store("one")), rows_by_id(open_store("many"))

    assert len(open_store("one").shards) == 1
    assert len(open_store("many").shards) > 4
    assert one.keys() == many.keys()
    for key, row in one.items():
        np.testing.assert_array_equal(row, many[key])


@pytest.mark.usefixtures("small_shards")
def test_bytes_do_not_depend_on_the_order_of_units(tmp_path, corpus, make_pipeline):
    make_pipeline("forwards").preprocess(corpus)
    make_pipeline("backwards").preprocess(corpus, reversed_map)

    assert digest(tmp_path / "forwards") == digest(tmp_path / "backwards")


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("room_bytes", [0, 3 << 16, room.ROOM_BYTES])
def test_bytes_do_not_depend_on_the_room_for_rows(tmp_path, corpus, make_pipeline, monkeypatch, room_bytes):
    make_pipeline("serial").preprocess(corpus)
    monkeypatch.setattr(room, "ROOM_BYTES", room_bytes)
    monkeypatch.setattr(shards, "room", room.Room())
    with ThreadPoolExecutor(4) as executor:
        make_pipeline("threads").preprocess(corpus, executor.map)

    assert digest(tmp_path / "serial") == digest(tmp_path / "threads")


@pytest.mark.usefixtures("small_shards")
def test_bytes_do_not_depend_on_where_the_corpus_is(tmp_path, corpus, make_pipeline):
    make_pipeline("first").preprocess(corpus)
    elsewhere = tmp_path / "else" / "where"
    elsewhere.parent.mkdir()
    corpus.rename(elsewhere)
    make_pipeline("second").preprocess(elsewhere)

    assert digest(tmp_path / "first") == digest(tmp_path / "second")


@pytest.mark.parametrize("block_clips", [1, 5])
def test_bytes_do_not_depend_on_the_composition_of_batches(tmp_path, corpus, make_pipeline, monkeypatch, block_clips):
    make_pipeline("default").preprocess(corpus)
    monkeypatch.setattr(shards, "BLOCK_CLIPS", block_clips)
    make_pipeline("other").preprocess(corpus)

    assert digest(tmp_path / "default") == digest(tmp_path / "other")


@pytest.mark.usefixtures("small_shards")
def test_a_second_run_leaves_the_same_files(tmp_path, corpus, make_pipeline):
    make_pipeline().preprocess(corpus)
    first = digest(tmp_path / "out")
    make_pipeline().preprocess(corpus)

    assert digest(tmp_path / "out") == first


def test_other_parameters_are_other_bytes(corpus, make_pipeline, open_store):
    make_pipeline("one").preprocess(corpus)
    make_pipeline("two", extractor=LogSpectrogramExtractor(top_db=79.0)).preprocess(corpus)

    assert open_store("one").digest != open_store("two").digest
    assert open_store("two").format.parameters["top_db"] == 79.0


@pytest.mark.usefixtures("small_shards")
def test_one_more_clip_changes_no_other_row_and_no_other_shard(corpus, rng, make_pipeline, open_store):
    make_pipeline("before").preprocess(corpus)
    write(corpus / "more.wav", rng.uniform(-0.5, 0.5, 3000))
    make_pipeline("after").preprocess(corpus)
    before, after = open_store("before"), open_store("after")

    assert rows_by_id(after).keys() - rows_by_id(before).keys() == {("more.wav", 0)}
    for key, row in rows_by_id(before).items():
        np.testing.assert_array_equal(row, rows_by_id(after)[key])
    prefix = f"{hash_prefix('more.wav', 3)}-"
    unchanged = {shard.name for shard in before.format.shards if not shard.name.startswith(prefix)}
    assert unchanged <= {shard.name for shard in after.format.shards}


# --- what cannot be used


@pytest.fixture
def mixed(tmp_path, rng):
    """Return a folder of 20 clips, of which 5 cannot be used."""
    folder = write_corpus(tmp_path / "mixed", rng, 15)
    (folder / "text.wav").write_text("this is not a sound")
    write(folder / "no samples.wav", np.zeros(0))
    cut(write(folder / "cut.wav", rng.uniform(-0.5, 0.5, 3000)))
    write(folder / "nan.wav", np.full(100, np.nan), subtype="FLOAT")
    os.mkfifo(folder / "pipe.wav")
    return folder


def test_what_cannot_be_used_is_listed_with_reasons(mixed, make_pipeline, open_store):
    report = make_pipeline(max_rejected_share=0.25).preprocess(mixed)

    assert [(each.clip_id, each.reason) for each in report.rejected] == [
        ("cut.wav", "truncated"),
        ("nan.wav", "not finite"),
        ("no samples.wav", "empty"),
        ("pipe.wav", "unreadable"),
        ("text.wav", "not audio"),
    ]
    assert (report.counts["clips"], report.counts["rejected"]) == (15, 5)
    assert len(open_store().table) == 15


def test_the_rest_is_as_if_it_had_been_alone(tmp_path, mixed, make_pipeline):
    report = make_pipeline("with", max_rejected_share=0.25).preprocess(mixed)
    for each in report.rejected:
        (mixed / each.clip_id).unlink()
    make_pipeline("without").preprocess(mixed)

    assert digest(tmp_path / "with") == digest(tmp_path / "without")


def test_more_than_the_limit_is_an_error_with_the_numbers(mixed, make_pipeline, open_store):
    with pytest.raises(
        RejectedError,
        match=r"^5 of 20 recordings cannot be used, and preprocess\.max_rejected_share=0\.24 allows 24%; "
        r"the first is 'cut\.wav': truncated: header promises 6000 bytes",
    ) as caught:
        make_pipeline(max_rejected_share=0.24).preprocess(mixed)

    assert len(caught.value.rejected) == 5
    with pytest.raises(StoreError, match="has not finished here"):
        open_store()


def test_an_error_withdraws_an_earlier_store(corpus, mixed, make_pipeline, open_store):
    make_pipeline().preprocess(corpus)
    assert open_store().format.n_rows == 18
    with pytest.raises(RejectedError, match="5 of 20"):
        make_pipeline(max_rejected_share=0.0).preprocess(mixed)

    with pytest.raises(StoreError, match="has not finished here"):
        open_store()
    # The next run finds nothing in its way, and leaves nothing of either.
    make_pipeline().preprocess(corpus)
    open_store().verify()
    assert len(list(open_store().folder.iterdir())) == 1 + len(open_store().format.shards)


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_corpus_of_which_nothing_can_be_used(tmp_path, make_pipeline, open_store, limit):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.wav").write_text("text")
    (tmp_path / "corpus" / "gone.wav").symlink_to("nowhere.wav")

    with pytest.raises(RejectedError, match="2 of 2 recordings cannot be used"):
        make_pipeline(max_rejected_share=limit).preprocess(tmp_path / "corpus")
    with pytest.raises(StoreError, match="has not finished here"):
        open_store()


def test_split_patterns_are_checked_before_any_work(corpus, make_pipeline, open_store):
    make_pipeline().preprocess(corpus)
    splitter = Splitter(None, r"^(?P<group>[^/]+)/", r"/[01]\.wav$")

    with pytest.raises(CorpusError, match=r"make split\.group finer"):
        make_pipeline(splitter=splitter).preprocess(corpus)
    open_store().verify()


def test_a_unit_that_fails_leaves_nothing_that_reads_as_a_store(corpus, make_pipeline, open_store):
    def fail_late(function, units):
        yield from map(function, units)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        make_pipeline().preprocess(corpus, fail_late)
    with pytest.raises(StoreError, match="has not finished here"):
        open_store()
