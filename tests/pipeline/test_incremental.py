"""A second run computes what is new, copies the rest, and ends in the bytes of a run from nothing."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline import planner, preprocessing, versions
from pipeline.artifact import FORMAT_FILE
from pipeline.corpus import Splitter
from pipeline.errors import StoreError
from pipeline.loader import Loader
from pipeline.preprocessing import RejectedError
from pipeline.spectrogram import LogSpectrogramExtractor
from tests.sounds import cut, digest, write, write_corpus


class WatchedLoader(Loader):
    """A loader that writes down what it was asked to decode."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.decoded = []

    def load_many(self, paths, trusted_only=False):
        paths = list(paths)
        self.decoded.extend(Path(path).name for path in paths)
        return super().load_many(paths, trusted_only)


class IdleExtractor(LogSpectrogramExtractor):
    """An extractor that must not be asked."""

    def extract(self, y):
        raise AssertionError("a row was computed")


@pytest.fixture
def corpus(tmp_path, rng, monkeypatch):
    """Return a folder of 24 clips, of which a shard holds 4."""
    monkeypatch.setattr(planner, "SHARD_BYTES", 4 << 16)
    return write_corpus(tmp_path / "corpus", rng, 24)


@pytest.fixture
def run(tmp_path, corpus, make_pipeline):
    """Return a function that runs incrementally, compares with a run from nothing, and says what was done."""

    def run(**options):
        loader = WatchedLoader()
        report = make_pipeline("out", loader=loader, **options).preprocess(corpus)
        shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
        make_pipeline("fresh", **options).preprocess(corpus)
        assert digest(tmp_path / "out") == digest(tmp_path / "fresh")
        counts = report.counts
        assert counts["computed"] == len(loader.decoded)
        return sorted(loader.decoded), counts["computed"], counts["reused"], counts["removed"]

    assert run() == (sorted(f"{index}.wav" for index in range(24)), 24, 0, 0)
    return run


def test_nothing_new_is_nothing_to_do(tmp_path, run):
    before = {path.name: path.stat().st_ino for path in (tmp_path / "out" / "spectrograms").glob("*.npy")}

    assert run() == ([], 0, 24, 0)
    assert {path.name: path.stat().st_ino for path in (tmp_path / "out" / "spectrograms").glob("*.npy")} == before


def test_an_added_clip_is_all_that_is_computed(corpus, rng, run):
    write(corpus / "new.wav", rng.uniform(-0.5, 0.5, 2000))

    assert run() == (["new.wav"], 1, 24, 0)


def test_a_changed_clip_is_all_that_is_computed(corpus, rng, run):
    path = corpus / "speaker0" / "2.wav"
    status = path.stat()
    write(path, rng.integers(-8000, 8000, 500 + 37 * 2).astype(np.int16))
    # Neither its length nor its time tells.
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size

    assert run() == (["2.wav"], 1, 23, 0)


def test_a_renamed_clip_is_not_computed(corpus, run):
    (corpus / "speaker0" / "2.wav").rename(corpus / "somebody else.wav")

    assert run() == ([], 0, 24, 1)


def test_a_deleted_clip_leaves_nothing(corpus, run):
    (corpus / "speaker0" / "2.wav").unlink()

    assert run() == ([], 0, 23, 1)


def test_a_copy_of_a_clip_is_counted_and_not_computed(corpus, run, make_pipeline):
    shutil.copy(corpus / "speaker0" / "2.wav", corpus / "again.wav")

    assert run() == ([], 0, 25, 0)
    assert make_pipeline("out").preprocess(corpus).counts["duplicates"] == 1
    # Of either, the other is left.
    (corpus / "speaker0" / "2.wav").unlink()
    assert run() == ([], 0, 24, 1)


def test_two_clips_that_change_names(corpus, run):
    first, second, other = (corpus / "speaker0" / name for name in ("0.wav", "2.wav", "x"))
    first.rename(other)
    second.rename(first)
    other.rename(second)

    assert run() == ([], 0, 24, 0)


def test_twice_as_many_shards_are_copied(tmp_path, corpus, run, make_pipeline, monkeypatch):
    n_before = len(list((tmp_path / "out" / "spectrograms").glob("*.npy")))
    monkeypatch.setattr(planner, "SHARD_BYTES", 2 << 16)
    report = make_pipeline("out", extractor=IdleExtractor()).preprocess(corpus)

    assert (report.counts["computed"], report.counts["reused"]) == (0, 24)
    assert len(report.store.shards) > n_before
    make_pipeline("fresh").preprocess(corpus)
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh")


def test_other_splits_compute_nothing(run):
    assert run(splitter=Splitter(seed=7, test_share=0.3))[1:] == (0, 24, 0)


@pytest.mark.parametrize("part", ["parameters", "code", "libraries"])
def test_what_shapes_the_numbers_invalidates_all(corpus, run, monkeypatch, part):
    options = {}
    if part == "parameters":
        options["extractor"] = LogSpectrogramExtractor(top_db=79.0)
    elif part == "code":
        monkeypatch.setattr(versions, "code_sha256", lambda: "0" * 64)
    else:
        monkeypatch.setattr(preprocessing, "numeric_versions", lambda _: {**versions.numeric_versions(), "soxr": "0.1"})

    assert run(**options)[1:] == (24, 0, 0)


def test_all_code_that_makes_a_row_is_in_its_digest(pytestconfig):
    # What ShardMaker.make imports, but for what only names, finds and stores, and the way back to sound.
    import ast

    def imports(name):
        tree = ast.parse((pytestconfig.rootpath / "pipeline" / f"{name}.py").read_text(encoding="utf-8"))
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        names = {node.module for node in nodes} | {
            f"pipeline.{each.name}" for node in nodes if node.module == "pipeline" for each in node.names
        }
        return {name.removeprefix("pipeline.") for name in names if name.startswith("pipeline.")}

    found, new = set(), {"shards"}
    while new:
        found |= new
        new = set().union(*map(imports, new)) - found
    assert found - {
        "artifact",
        "bucket",
        "clips",
        "columns",
        "corpus",
        "errors",
        "griffin_lim",
        "inversion",
        "reuse",
        "storage",
        "store",
        "units",
    } == set(versions.CODE)


def test_a_damaged_row_is_computed_again_and_not_passed_on(tmp_path, run):
    shard = max((tmp_path / "out" / "spectrograms").glob("*.npy"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    n_rows = len(np.load(shard))

    assert run()[1:] == (n_rows, 24 - n_rows, 0)


def test_a_missing_shard_is_computed_again(tmp_path, run):
    shard = max((tmp_path / "out" / "spectrograms").glob("*.npy"), key=lambda path: path.stat().st_size)
    n_rows = len(np.load(shard))
    shard.unlink()

    assert run()[1:] == (n_rows, 24 - n_rows, 0)


@pytest.mark.parametrize("name", ["min_max_values.parquet", f"spectrograms/{FORMAT_FILE}"])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_without_a_whole_description_all_is_computed(tmp_path, run, name, content):
    path = tmp_path / "out" / name
    path.unlink() if content is None else path.write_bytes(content)

    assert run()[1:] == (24, 0, 0)


def test_a_run_that_was_killed_loses_nothing_of_the_one_before(corpus, rng, run, make_pipeline, open_store):
    def die(function, units):
        for unit in units[:3]:
            yield function(unit)
        raise KeyboardInterrupt

    write(corpus / "new.wav", rng.uniform(-0.5, 0.5, 2000))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            make_pipeline("out").preprocess(corpus, die)
        with pytest.raises(StoreError, match="has not finished here"):
            open_store()

    assert run() == (["new.wav"], 1, 24, 0)


def test_a_refused_corpus_loses_nothing_of_the_run_before(corpus, rng, run, make_pipeline):
    path = cut(write(corpus / "cut.wav", rng.uniform(-0.5, 0.5, 2000)))
    with pytest.raises(RejectedError, match="1 of 25"):
        make_pipeline("out", max_rejected_share=0.0).preprocess(corpus)
    path.unlink()

    assert run() == ([], 0, 24, 0)


def test_nothing_is_written_through_a_link(tmp_path, corpus, rng, run):
    # As DVC's cache has it with `cache.type` symlink and hardlink.
    cache = tmp_path / "cache"
    cache.mkdir()
    out = tmp_path / "out"
    files = [path for path in out.rglob("*") if path.is_file()]
    for index, path in enumerate(files):
        path.rename(cache / path.name)
        (path.symlink_to if index % 2 else path.hardlink_to)(cache / path.name)
    before = digest(cache)
    write(corpus / "new.wav", rng.uniform(-0.5, 0.5, 2000))

    assert run() == (["new.wav"], 1, 24, 0)
    assert digest(cache) == before
