"""Rows in half the bytes: off by no more than is said, read as float32, and never mixed with others."""

import shutil

import numpy as np
import pytest

from pipeline import planner
from pipeline.corpus import list_clips
from pipeline.errors import ResourceError
from pipeline.normaliser import MinMaxNormaliser, float16_error
from pipeline.params import PipelineParams, read_params
from pipeline.stages import preprocess
from tests.sounds import digest, signals, write, write_corpus


@pytest.fixture
def corpus(tmp_path, rng, monkeypatch):
    """A folder of signals in which different things are hard, in several shards."""
    monkeypatch.setattr(planner, "SHARD_BYTES", 4 << 15)
    for name, y in signals(rng).items():
        write(tmp_path / "corpus" / f"{name}.wav", y, 22_050, subtype="FLOAT")
    return write_corpus(tmp_path / "corpus", rng, 8)


def in_db(store, normaliser):
    """Return all rows of a store in dB, with their span."""
    min_db, max_db = (np.asarray(store.table[name], dtype=np.float32) for name in ("min_db", "max_db"))
    x = store.rows(np.arange(len(store.table)))
    assert x.dtype == np.float32
    return normaliser.denormalise(x, min_db, max_db), max_db - min_db


def by_clip(store, x):
    return dict(zip(store.table["clip_id"].to_pylist(), x, strict=True))


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-1.0, 1.0), (0.1, 0.9), (0.0, 100.0)])
def test_levels_are_off_by_half_a_step_at_most(corpus, make_pipeline, open_store, ends):
    normaliser = MinMaxNormaliser(*ends)
    for dtype in ("float32", "float16"):
        make_pipeline(dtype, normaliser=normaliser, dtype=dtype).preprocess(corpus)
    (whole_db, span_db), (half_db, _) = (in_db(open_store(dtype), normaliser) for dtype in ("float32", "float16"))
    whole, half = by_clip(open_store("float32"), whole_db), by_clip(open_store("float16"), half_db)
    errors_db = np.concatenate([(half[name] - whole[name]).ravel() for name in whole])
    limit_db = float16_error(*ends) / (ends[1] - ends[0]) * span_db.max()

    assert span_db.max() <= 80.001
    # As the README says of the defaults.
    assert limit_db < 0.02 if ends == (0.0, 1.0) else limit_db < 0.04
    # And rounding of float32 on the way back, of which levels have 7 digits.
    assert np.abs(errors_db).max() <= limit_db + 2e-5
    # The bound is one that is reached, and errors on the whole are as if every remainder were as likely.
    assert np.abs(errors_db).max() > 0.9 * limit_db
    assert np.sqrt(np.mean(np.square(errors_db))) < limit_db / np.sqrt(3)


def test_rows_are_those_of_float32_rounded_once(corpus, make_pipeline, open_store):
    for dtype in ("float32", "float16"):
        make_pipeline(dtype, dtype=dtype).preprocess(corpus)
    whole, half = open_store("float32"), open_store("float16")
    expected = by_clip(whole, whole.rows(np.arange(len(whole.table))))

    assert {shard.dtype for shard in half.shards} == {np.dtype(np.float16)}
    assert {shard.dtype for shard in whole.shards} == {np.dtype(np.float32)}
    for name, x in by_clip(half, half.rows(np.arange(len(half.table)))).items():
        np.testing.assert_array_equal(x, expected[name].astype(np.float16))
    assert (whole.format.parameters["dtype"], half.format.parameters["dtype"]) == ("float32", "float16")
    half.verify()


def test_a_second_run_copies_them_and_no_others(tmp_path, corpus, rng, make_pipeline):
    def run(folder, dtype):
        counts = make_pipeline(folder, dtype=dtype).preprocess(corpus).counts
        return counts["computed"], counts["reused"]

    assert run("out", "float16") == (14, 0)
    write(corpus / "new.wav", rng.uniform(-0.5, 0.5, 2000))
    (corpus / "sine.wav").rename(corpus / "renamed.wav")
    assert run("out", "float16") == (1, 14)
    run("fresh", "float16")
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh")
    for dtype in ("float32", "float16"):
        assert run("out", dtype) == (15, 0)
        shutil.rmtree(tmp_path / "fresh")
        run("fresh", dtype)
        assert digest(tmp_path / "out") == digest(tmp_path / "fresh")


def test_half_the_disk_is_asked_for(tmp_path, corpus, monkeypatch, write_params, capsys):
    monkeypatch.chdir(tmp_path)
    pipelines = {
        dtype: preprocess.build(read_params(PipelineParams, write_params({"preprocess.dtype": dtype})))
        for dtype in ("float32", "float16")
    }
    for pipeline in pipelines.values():
        preprocess.check_disk(pipeline, list_clips(corpus), 1600)
    needed = capsys.readouterr().out

    assert ", 100 MiB of spectrograms" in needed
    assert ", 50 MiB of spectrograms" in needed
    # What there is room for is what will be written.
    room = pipelines["float32"].saver.shards.free_bytes()
    n_rows = room * 3 // 2 // pipelines["float32"].row_bytes
    with pytest.raises(ResourceError, match=r"are free$"):
        preprocess.check_disk(pipelines["float32"], list_clips(corpus), n_rows)
    preprocess.check_disk(pipelines["float16"], list_clips(corpus), n_rows)
