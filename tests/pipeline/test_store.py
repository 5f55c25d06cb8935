import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest

from pipeline.artifact import FORMAT_FILE, FORMAT_VERSION, TABLE_SCHEMA, Format, Shard
from pipeline.errors import StoreError
from pipeline.store import Saver, Store

SHAPE = (3, 4)


def make_table(places):
    """Return a table of which only the places of the rows matter."""
    columns = {field.name: [None] * len(places) for field in TABLE_SCHEMA}
    columns["clip_id"] = [f"{index}.wav" for index in range(len(places))]
    columns["shard"] = [shard for shard, _ in places]
    columns["row"] = [row for _, row in places]
    return pa.table(columns, schema=TABLE_SCHEMA)


@pytest.fixture
def rows(rng):
    """Rows (9, n_bins, n_frames) of the store."""
    return rng.uniform(0, 1, (9, *SHAPE)).astype(np.float32)


@pytest.fixture
def saver(tmp_path):
    return Saver(tmp_path / "spectrograms", tmp_path / "table.parquet")


@pytest.fixture
def store(saver, rows):
    """Return a store of three shards, of 2, 3 and 4 rows."""
    saver.prepare()
    parts = {"0": [rows[:2]], "1": [rows[2:3], rows[3:5]], "2": [rows[5:]]}
    shards = [saver.save_shard(prefix, blocks) for prefix, blocks in parts.items()]
    table = make_table([(shard, row) for shard, n_rows in enumerate((2, 3, 4)) for row in range(n_rows)])
    saver.finish(shards, table, SHAPE, {"n_fft": 512}, {"numpy": "2"})
    return Store(saver.folder, saver.table_path)


def reopen(store):
    return Store(store.folder, store.table_path)


def edit_format(store, **changes):
    path = store.folder / FORMAT_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_rows_are_those_that_were_written(store, rows):
    np.testing.assert_array_equal(store.rows(np.arange(9)), rows)
    assert store.format.n_rows == len(store.table) == 9


def test_rows_come_in_the_order_asked_for(store, rows, rng):
    for _ in range(20):
        indices = rng.integers(0, 9, rng.integers(0, 15))
        found = store.rows(indices)

        np.testing.assert_array_equal(found, rows[indices], strict=True)
        assert found.flags.owndata


def test_shards_are_mapped_and_read_only(store, rows):
    assert [shard.shape for shard in store.shards] == [(2, *SHAPE), (3, *SHAPE), (4, *SHAPE)]
    for shard in store.shards:
        assert isinstance(shard, np.memmap)
        assert shard.dtype == np.dtype("<f4")
        assert shard.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            shard[0] = 0
    np.testing.assert_array_equal(np.concatenate(store.shards), rows)


def test_a_shard_is_a_plain_npy_file(tmp_path, saver, rows):
    saver.prepare()
    shard = saver.save_shard("7", [rows])
    np.save(tmp_path / "numpys.npy", rows)
    content = (saver.folder / shard.name).read_bytes()

    assert content == (tmp_path / "numpys.npy").read_bytes()
    assert shard == Shard(f"7-{shard.sha256[:16]}.npy", 9, len(content), hashlib.sha256(content).hexdigest())


def test_a_shard_does_not_depend_on_how_its_rows_came(saver, rows):
    saver.prepare()
    big_endian = np.asfortranarray(rows).astype(">f4")
    shards = {
        saver.save_shard("7", blocks) for blocks in ([rows], [rows[:1], rows[1:]], list(rows[:, None]), [big_endian])
    }

    assert len(shards) == 1


def test_what_is_described_is_read(store):
    assert store.format.parameters == {"n_fft": 512}
    assert store.format.versions == {"numpy": "2"}
    assert store.format.shape == SHAPE
    assert Format.from_json(store.format.to_json()) == store.format


def test_the_same_content_is_the_same_bytes(tmp_path, store, rows):
    again = Saver(tmp_path / "again", tmp_path / "again.parquet")
    again.prepare()
    shards = [again.save_shard(str(index), [part]) for index, part in enumerate(np.split(rows, [2, 5]))]
    again.finish(shards, store.table, SHAPE, {"n_fft": 512}, {"numpy": "2"})

    assert Store(again.folder, again.table_path).digest == store.digest


def test_a_whole_store_verifies(store):
    store.verify()


# --- what does not read as a store


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(StoreError, match=r"format\.json: missing; the preprocess stage has not finished here"):
        Store(tmp_path / "spectrograms", tmp_path / "table.parquet")


def test_a_store_that_was_never_finished(saver, rows):
    saver.prepare()
    saver.save_shard("0", [rows])

    with pytest.raises(StoreError, match="has not finished here"):
        Store(saver.folder, saver.table_path)


def test_a_store_that_is_being_made_anew(saver, store):
    saver.prepare()

    with pytest.raises(StoreError, match="has not finished here"):
        reopen(store)


def test_a_missing_shard(store):
    name = store.format.shards[1].name
    (store.folder / name).unlink()

    with pytest.raises(StoreError, match=rf"{name}: missing, though format\.json names it"):
        reopen(store)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_shard_of_another_size(store, change):
    shard = store.format.shards[2]
    content = (store.folder / shard.name).read_bytes()
    (store.folder / shard.name).write_bytes(content[:-1] if change < 0 else content + b"\0")

    with pytest.raises(
        StoreError, match=f"{shard.name}: holds {shard.n_bytes + change} bytes, expected {shard.n_bytes}"
    ):
        reopen(store)


def test_altered_bytes_are_found_by_verify(store):
    shard = store.format.shards[0]
    content = bytearray((store.folder / shard.name).read_bytes())
    content[-1] ^= 1
    (store.folder / shard.name).write_bytes(content)

    altered = hashlib.sha256(content).hexdigest()
    with pytest.raises(StoreError, match=f"{shard.name}: sha256 is {altered}, expected {shard.sha256}"):
        reopen(store).verify()


@pytest.mark.parametrize("use", [lambda store: store.table, lambda store: store.rows(np.arange(1)), Store.verify])
def test_another_table(store, use):
    store.table_path.write_bytes(store.table_path.read_bytes() + b"\0")

    with pytest.raises(StoreError, match=r"table\.parquet: is not the table that format\.json names"):
        use(reopen(store))


def test_a_missing_table(store):
    store.table_path.unlink()

    with pytest.raises(StoreError, match=r"table\.parquet: missing"):
        _ = reopen(store).table


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, None, "1"])
def test_another_format_version(store, version):
    edit_format(store, format_version=version)

    with pytest.raises(StoreError, match=f"format_version is {version!r}, expected {FORMAT_VERSION}"):
        reopen(store)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read: Expecting value"),
        (b"{", "cannot be read: Expecting property name"),
        (b"\xff", "cannot be read: 'utf-8' codec"),
        (b"[]", "cannot be read: it holds list, expected an object"),
        (b'"x"', "cannot be read: it holds str, expected an object"),
        (b'{"format_version": 4}', "cannot be read: its keys are not those of version 4: 'shards'"),
        (b'{"format_version": 4, "shards": [], "shape": 7}', "cannot be read: its keys are not those of version 4"),
        (b'{"format_version": 4, "shards": [[]], "shape": [3, 4]}', "cannot be read: its keys are not those"),
        (b'{"format_version": 4, "shards": [], "shape": [3, 4]}', "cannot be read: its keys are not those"),
    ],
)
def test_a_damaged_format_file(store, content, message):
    (store.folder / FORMAT_FILE).write_bytes(content)

    with pytest.raises(StoreError, match=rf"format\.json: {message}"):
        reopen(store)


# --- what stays, and what goes


def test_earlier_shards_and_what_killed_runs_left_are_removed(saver, store, rows):
    leftovers = [
        saver.folder / f".3-{'d' * 16}.npy.{'a' * 16}.partial",
        saver.folder / f"0-{'b' * 16}.npy",
        saver.table_path.with_name(f".table.parquet.{'c' * 16}.partial"),
    ]
    for path in leftovers:
        path.touch()
    kept = store.format.shards[0].name
    saver.prepare()
    saver.finish([saver.save_shard("0", [rows[:2]])], make_table([(0, 0), (0, 1)]), SHAPE, {}, {})

    assert sorted(path.name for path in saver.folder.iterdir()) == sorted([kept, FORMAT_FILE])
    assert not any(path.exists() for path in leftovers)
    np.testing.assert_array_equal(reopen(store).rows(np.array([1, 0])), rows[[1, 0]])


def test_files_of_others_stay(saver, rows):
    saver.prepare()
    others = [
        saver.folder / name
        for name in ("my-notes.npy", ".draft.partial", "readme-first.txt", "0-1.npy", f"g-{'a' * 16}.npy")
    ]
    others.append(saver.table_path.with_name(".table.parquet.mine.partial"))
    for path in others:
        path.write_text("mine")
    saver.finish([saver.save_shard("0", [rows[:1]])], make_table([(0, 0)]), SHAPE, {}, {})

    assert [path.read_text() for path in others] == ["mine"] * len(others)
