"""Stores whose shards lie in a storage: the same bytes as beside `format.json`, whatever became of them before."""

import itertools
import random
import shutil
import threading

import numpy as np
import pytest

from pipeline import planner
from pipeline.artifact import FORMAT_FILE
from pipeline.errors import ResourceError, StoreError
from pipeline.spectrogram import LogSpectrogramExtractor
from pipeline.storage import open_storage
from pipeline.store import Saver, Store
from tests import s3
from tests.sounds import digest, write, write_corpus

N_CLIPS = 24


@pytest.fixture
def corpus(tmp_path, rng, monkeypatch):
    """Return a folder of clips, of which a shard holds 4."""
    monkeypatch.setattr(planner, "SHARD_BYTES", 4 << 16)
    return write_corpus(tmp_path / "corpus", rng, N_CLIPS)


@pytest.fixture(params=["folder", "bucket"])
def location(request, tmp_path):
    """The location of a storage of each kind, in which there is nothing."""
    if request.param == "folder":
        return str(tmp_path / "storage")
    request.getfixturevalue("s3_let_in")
    return request.getfixturevalue("s3_server").location(request.node.name)


class Elsewhere:
    """A project's `data/` and a storage, beside the same made from nothing without one."""

    def __init__(self, tmp_path, make_pipeline, corpus, location):
        self.folder = tmp_path / "out" / "spectrograms"
        self.table_path = tmp_path / "out" / "min_max_values.parquet"
        self.location = location
        self.shards = open_storage(location).at("shards")
        self._corpus = corpus
        self._make_pipeline = make_pipeline
        self._fresh = tmp_path / "fresh"

    def run(self, location="", map_units=map, **options):
        """Run, compare with a run from nothing, and return how many clips were computed, reused and removed."""
        pipeline = self._make_pipeline("out", **options)
        pipeline.saver = Saver(self.folder, self.table_path, self.location if location == "" else location)
        counts = pipeline.preprocess(self._corpus, map_units).counts
        shutil.rmtree(self._fresh, ignore_errors=True)
        self._make_pipeline("fresh", **options).preprocess(self._corpus)
        assert digest(self.folder / FORMAT_FILE, self.table_path) == digest(
            self._fresh / "spectrograms" / FORMAT_FILE, self._fresh / "min_max_values.parquet"
        )
        return counts["computed"], counts["reused"], counts["removed"]

    def written(self):
        """Return name and time of each shard in the storage."""
        return {entry.name: entry.modified_s for entry in self.shards.entries()}

    def store(self):
        return Store(self.folder, self.table_path, self.location)

    def whole(self):
        """Return the store made from nothing, without a storage."""
        return Store(self._fresh / "spectrograms", self._fresh / "min_max_values.parquet")


@pytest.fixture
def elsewhere(tmp_path, make_pipeline, corpus, location):
    made = Elsewhere(tmp_path, make_pipeline, corpus, location)
    assert made.run() == (N_CLIPS, 0, 0)
    return made


def test_the_bytes_are_those_of_a_store_without_a_storage(elsewhere):
    store, whole = elsewhere.store(), elsewhere.whole()
    everything = np.arange(N_CLIPS)

    assert [path.name for path in elsewhere.folder.iterdir()] == [FORMAT_FILE]
    assert store.digest == whole.digest
    assert len(store.format.shards) > 3
    for shard in store.format.shards:
        assert elsewhere.shards.get(shard.name) == (whole.folder / shard.name).read_bytes()
    np.testing.assert_array_equal(store.rows(everything), whole.rows(everything), strict=True)
    assert all(isinstance(shard, np.memmap) for shard in store.shards)
    store.verify()


def test_nothing_new_writes_nothing(elsewhere):
    before = elsewhere.written()

    assert elsewhere.run() == (0, N_CLIPS, 0)
    assert elsewhere.written() == before


def test_one_clip_more_writes_one_shard_more(elsewhere, corpus, rng):
    before = elsewhere.written()
    write(corpus / "new.wav", rng.uniform(-0.5, 0.5, 2000))

    assert elsewhere.run() == (1, N_CLIPS, 0)
    after = elsewhere.written()
    assert len(after) == len(before) + 1
    assert before.items() <= after.items()


def test_an_earlier_revision_finds_its_shards(tmp_path, elsewhere):
    shutil.copytree(tmp_path / "out", tmp_path / "revision")
    rows = elsewhere.store().rows(np.arange(N_CLIPS))
    before = elsewhere.written()
    assert elsewhere.run(extractor=LogSpectrogramExtractor(top_db=40.0)) == (N_CLIPS, 0, 0)
    assert len(elsewhere.written()) == 2 * len(before)

    # As `dvc checkout` does.
    shutil.rmtree(tmp_path / "out")
    shutil.copytree(tmp_path / "revision", tmp_path / "out")
    np.testing.assert_array_equal(elsewhere.store().rows(np.arange(N_CLIPS)), rows)
    # And a run from nothing finds what it has made before, and does not write it again.
    shutil.rmtree(tmp_path / "out")
    written = elsewhere.written()
    assert elsewhere.run() == (N_CLIPS, 0, 0)
    assert elsewhere.written() == written


def test_shards_that_lay_in_the_project_are_copied(tmp_path, make_pipeline, corpus, location):
    made = Elsewhere(tmp_path, make_pipeline, corpus, location)
    made.run(location=None)
    assert made.written() == {}
    with pytest.raises(StoreError, match=r"/shards/\w+-\w+\.npy: missing, though format\.json names it; copy it there"):
        made.store()

    assert made.run() == (0, N_CLIPS, 0)
    assert [path.name for path in made.folder.iterdir()] == [FORMAT_FILE]
    made.store().verify()


def test_back_into_the_project(elsewhere):
    assert elsewhere.run(location=None) == (N_CLIPS, 0, 0)
    Store(elsewhere.folder, elsewhere.table_path).verify()


def test_a_shard_that_is_gone_is_computed_again(elsewhere):
    shard = elsewhere.store().format.shards[1]
    elsewhere.shards.remove(shard.name)
    with pytest.raises(StoreError, match=f"{shard.name}: missing, though {FORMAT_FILE} names it"):
        elsewhere.store()

    assert elsewhere.run() == (shard.n_rows, N_CLIPS - shard.n_rows, 0)
    elsewhere.store().verify()


@pytest.mark.parametrize("cut", [0, 1])
def test_damage_is_found(elsewhere, cut):
    shard = elsewhere.store().format.shards[1]
    content = bytearray(elsewhere.shards.get(shard.name))
    content[-1] ^= 1
    elsewhere.shards.put(shard.name, [bytes(content[cut:])])

    with pytest.raises(StoreError, match=f"{shard.name}: (sha256 is .*|holds {len(content) - 1} bytes), expected "):
        elsewhere.store().verify()


def test_a_shard_that_goes_while_others_are_made_is_missed(elsewhere, corpus, rng):
    def lose(function, units):
        results = [function(unit) for unit in units]
        elsewhere.shards.remove(results[0].shard.name)
        return results

    write(corpus / "new.wav", rng.uniform(-0.5, 0.5, 2000))
    with pytest.raises(StoreError, match=r"\.npy: missing, though"):
        elsewhere.run(map_units=lose)
    with pytest.raises(StoreError, match="has not finished here"):
        elsewhere.store()
    elsewhere.run()
    elsewhere.store().verify()


def test_a_run_that_was_killed_goes_on(elsewhere, corpus, rng):
    def die(function, units):
        for unit in itertools.islice(units, 2):
            yield function(unit)
        raise KeyboardInterrupt

    write(corpus / "new.wav", rng.uniform(-0.5, 0.5, 2000))
    with pytest.raises(KeyboardInterrupt):
        elsewhere.run(map_units=die)
    with pytest.raises(StoreError, match="has not finished here"):
        elsewhere.store()
    assert elsewhere.run() == (1, N_CLIPS, 0)


def test_what_describes_a_store_can_be_shared(tmp_path, elsewhere):
    store = elsewhere.store()
    place = open_storage(elsewhere.location).at("shared").location
    store.share(place)
    table = store.table
    shutil.rmtree(tmp_path / "out")

    fetched = Store.fetch(place, elsewhere.location)
    assert fetched.digest == store.digest
    assert fetched.table.equals(table)
    np.testing.assert_array_equal(fetched.rows(np.arange(N_CLIPS)), elsewhere.whole().rows(np.arange(N_CLIPS)))


def test_a_shard_that_goes_later_is_one_line(elsewhere):
    store = elsewhere.store()
    for shard in store.format.shards:
        elsewhere.shards.remove(shard.name)
    with pytest.raises(StoreError, match=f"{store.format.shards[0].name}: missing, though .*; copy it there, or make"):
        store.rows(np.arange(N_CLIPS))


def test_a_place_that_cannot_be_written(tmp_path, make_pipeline, corpus):
    (tmp_path / "file").touch()
    made = Elsewhere(tmp_path, make_pipeline, corpus, str(tmp_path / "file"))
    with pytest.raises(ResourceError, match=r"file/shards/\w+-\w+\.npy: cannot be written: Not a directory"):
        made.run()


# --- a server that dies


class Killer:
    """Kills a server by its id at given times after the first unit of work began, and starts it again each time."""

    def __init__(self, server, delays_s):
        self.server = server
        self.n_kills = 0
        self._delays_s = delays_s

    def __call__(self, function, units):
        done = threading.Event()
        thread = threading.Thread(target=self._kill, args=(done,))
        thread.start()
        try:
            yield from map(function, units)
        finally:
            done.set()
            thread.join()

    def _kill(self, done):
        for delay_s in self._delays_s:
            if done.wait(delay_s):
                return
            self.server.kill()
            self.n_kills += 1
            self.server.start()


@pytest.fixture
def many(tmp_path, monkeypatch):
    """Return a corpus of 400 clips in 64 shards."""
    monkeypatch.setattr(planner, "SHARD_BYTES", 8 << 16)
    return write_corpus(tmp_path / "corpus", np.random.default_rng(1), 400)


def test_a_server_that_dies_while_shards_are_written(tmp_path, make_pipeline, many, s3_let_in):
    with s3.running() as server:
        made = Elsewhere(tmp_path, make_pipeline, many, server.location("killed"))
        killer = Killer(server, [0.2])
        assert made.run(map_units=killer) == (400, 0, 0)

        assert killer.n_kills == 1
        made.store().verify()
        assert made.store().digest == made.whole().digest


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_server_that_dies_again_and_again(tmp_path, make_pipeline, many, s3_let_in):
    rng = random.Random(20240229)
    n_kills = 0
    with s3.running() as server:
        for number in range(20):
            made = Elsewhere(tmp_path, make_pipeline, many, server.location(f"killed{number}"))
            killer = Killer(server, [rng.uniform(0.0, 0.5) for _ in range(rng.randint(1, 4))])
            made.run(map_units=killer)
            n_kills += killer.n_kills
            made.store().verify()
            assert server.keys(f"killed{number}") == [
                f"killed{number}/shards/{shard.name}" for shard in made.store().format.shards
            ]
            shutil.rmtree(tmp_path / "out")
            shutil.rmtree(s3_let_in, ignore_errors=True)
    assert n_kills >= 20
