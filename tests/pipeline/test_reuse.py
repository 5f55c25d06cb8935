"""What an earlier run made of a recording is found by content, as a search line by line finds it."""

import hashlib
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import reuse
from pipeline.artifact import TABLE_SCHEMA, Format
from pipeline.reuse import Previous

# Some contents are that of several recordings, and a recording has up to three lines.
recordings = st.lists(
    st.tuples(st.integers(0, 30).map("{}.wav".format), st.integers(0, 5), st.integers(1, 3)),
    unique_by=lambda recording: recording[0],
    min_size=1,
    max_size=20,
)
asked = st.lists(st.tuples(st.integers(0, 40).map("{}.wav".format), st.integers(0, 8)), min_size=1, max_size=20)


def sha256(content):
    return hashlib.sha256(bytes([content])).hexdigest()


def previous_of(recordings):
    lines = [(clip_id, sha256(content), segment) for clip_id, content, n in recordings for segment in range(n)]
    columns = dict(zip(("clip_id", "sha256", "segment"), zip(*lines, strict=True), strict=True))
    columns |= {"shard": [0] * len(lines), "row": range(len(lines))}
    table = pa.table(
        {field.name: pa.array(columns.get(field.name, [None] * len(lines)), field.type) for field in TABLE_SCHEMA}
    )
    return Previous.of((), Format({}, {}, (1, 1), (), ""), table)


def expected_ids(recordings, clip_id, content):
    """Return the recordings that may be found, by looking at each."""
    same = [each for each, its_content, _ in recordings if its_content == content]
    return {clip_id} if clip_id in same else set(same)


@given(recordings, asked)
def test_recordings_are_found_as_one_by_one(recordings, asked):
    previous = previous_of(recordings)
    assert previous.clip_ids().to_pylist() == [clip_id for clip_id, _, _ in recordings]
    # As a worker gets it.
    previous = pickle.loads(pickle.dumps(previous, protocol=5))
    starts, stops = previous.find([sha256(content) for _, content in asked], [clip_id for clip_id, _ in asked])
    n_lines = {clip_id: n for clip_id, _, n in recordings}

    for (clip_id, content), start, stop in zip(asked, starts, stops, strict=True):
        lines = previous.lines.slice(start, stop - start).to_pylist()
        wanted = expected_ids(recordings, clip_id, content)
        found = {line["clip_id"] for line in lines}
        assert len(found) == bool(wanted)
        assert found <= wanted
        assert [line["segment"] for line in lines] == [*range(sum(n_lines[each] for each in found))]


@given(recordings, asked)
def test_hashes_that_agree_find_nothing_of_other_content(recordings, asked):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reuse.columns, "first_bits", lambda digests: np.zeros(len(digests), dtype=np.uint64))
        patch.setattr(reuse, "_mix", lambda contents, clip_ids: contents)
        previous = previous_of(recordings)
        starts, stops = previous.find([sha256(content) for _, content in asked], [clip_id for clip_id, _ in asked])

    for (_, content), start, stop in zip(asked, starts, stops, strict=True):
        lines = previous.lines.slice(start, stop - start).to_pylist()
        assert {line["sha256"] for line in lines} <= {sha256(content)}
        assert len({line["clip_id"] for line in lines}) <= 1


def test_what_cannot_be_read_is_new():
    starts, stops = previous_of([("a.wav", 0, 1)]).find([""], ["a.wav"])

    np.testing.assert_array_equal(starts, stops)
