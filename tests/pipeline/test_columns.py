"""Columns and tables are what `pyarrow` makes of the same values by its own ways, which import pandas."""

import hashlib
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import columns

texts = st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"])), max_size=12)


@given(texts, texts)
def test_texts_are_those_of_pyarrow(some, others):
    made = columns.strings(some)
    made.validate(full=True)

    assert made.equals(pa.array(some, pa.string()))
    assert pa.chunked_array([made, columns.strings(others)]).to_pylist() == some + others


@pytest.mark.parametrize("type", [pa.int32(), pa.int64(), pa.float32(), pa.float64()], ids=str)
@pytest.mark.parametrize("given", [[], [3, -1, 2], range(5), np.arange(4), np.arange(8)[::2]], ids=repr)
def test_numbers_are_those_of_pyarrow_and_come_back(type, given):
    made = columns.numbers(given, type)
    made.validate(full=True)

    assert made.equals(pa.array(list(given), pa.int64()).cast(type))
    for pieces in ([made], [], [made.slice(1), made, made.slice(0, 0)], [made.slice(2)]):
        column = pa.chunked_array(pieces, type)
        np.testing.assert_array_equal(columns.values(column), column.to_pylist())
        assert columns.values(column).dtype == type.to_pandas_dtype()


@given(st.lists(st.booleans(), max_size=20), st.integers(0, 9))
def test_truth_values_come_back(truths, start):
    column = pa.chunked_array([pa.array(truths, pa.bool_()).slice(start)])

    assert columns.values(column).tolist() == truths[start:]


def test_what_is_not_copied():
    numbers = np.arange(5, dtype=np.int64)

    assert np.shares_memory(columns.values(pa.chunked_array([columns.numbers(numbers, pa.int64())])), numbers)


def test_digests_and_their_first_bits():
    known = [hashlib.sha256(bytes([index])).hexdigest() for index in range(256)]
    column = pa.chunked_array([columns.strings(known).slice(0, 7), columns.strings(known).slice(7)])
    found = columns.digests(column)
    bits = columns.first_bits(np.append(found, np.zeros(1, columns.DIGEST)))

    assert [each.decode() for each in found] == known
    np.testing.assert_array_equal(columns.digests(pa.chunked_array([column.chunk(1)])), found[7:])
    assert len(columns.digests(pa.chunked_array([], pa.string()))) == 0
    # Each digit decides of four bits, by the same rule in each of its eight places.
    expected = [sum(int(digest[k + 8 * half], 16) << 8 * k + 4 * (1 - half) for k in range(8) for half in (0, 1))
                for digest in known]  # fmt: skip
    assert bits.tolist() == [*expected, 0]


@given(st.lists(st.sampled_from(["a", "b", ""]), max_size=12))
def test_runs_start_where_a_loop_finds_them(some):
    found = columns.run_starts(pa.chunked_array([columns.strings(some)]))

    assert found.tolist() == [place for place in range(len(some)) if not place or some[place] != some[place - 1]]


@pytest.mark.parametrize("part", [slice(0, 9), slice(2, 5), slice(4, 5)], ids=str)
def test_a_packed_table_is_the_table_and_no_more(part):
    schema = pa.schema([("id", pa.string()), ("n", pa.int32())])
    whole = pa.table([columns.strings(["a", None, "ä"] * 300), columns.numbers(range(900), pa.int32())], schema=schema)
    whole = pa.concat_tables([whole, whole])
    table = whole.slice(part.start, part.stop - part.start)
    sent = pickle.dumps(columns.pack(table), protocol=5)

    assert columns.unpack(pickle.loads(sent)).equals(table)
    assert len(sent) < 1500
    assert columns.unpack(columns.pack(whole)).equals(whole)


def test_nothing_imports_pandas():
    code = (
        "import sys, numpy as np, pyarrow as pa; from pipeline import columns as c\n"
        "table = pa.table([c.strings(['a', None]), c.numbers([1, 2], pa.int32())], names=['a', 'b'])\n"
        "c.unpack(c.pack(table)).take(c.numbers(c.values(table['b'])[:1], pa.int64()))\n"
        "c.run_starts(table['b']), c.digests(table['a'].slice(0, 0))\n"
        "sys.exit('pandas' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
