"""Memory that is used again, and pieces of it put together without a copy."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline import room
from pipeline.room import Room, join


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=12))
def test_joined_pieces_are_all_rows_in_order(taken):
    memory, pieces = Room(), []
    for number, (n_rows, is_ours) in enumerate(taken):
        x = memory.take((n_rows, 2, 3)) if is_ours else np.empty((n_rows, 2, 3), dtype=np.float32)
        x[...] = np.arange(x.size).reshape(x.shape) + 1000 * number
        # As a block of clips is: a piece for each.
        pieces.extend(np.split(x, n_rows))
    joined = join(pieces)

    np.testing.assert_array_equal(np.concatenate(joined), np.concatenate(pieces))
    assert all(np.shares_memory(one, other) for one, other in zip(joined[:1], pieces[:1], strict=True))


def test_neighbours_are_one_piece_up_to_a_size(monkeypatch):
    memory = Room()
    pieces = [memory.take((1, 2, 3)) for _ in range(6)]
    assert [len(piece) for piece in join(pieces)] == [6]
    assert [len(piece) for piece in join(pieces[::-1])] == [1] * 6

    monkeypatch.setattr(room, "_JOINED_BYTES", 2 * pieces[0].nbytes)
    assert [len(piece) for piece in join(pieces)] == [2, 2, 2]


def test_memory_is_given_out_once_until_it_is_taken_back(monkeypatch):
    monkeypatch.setattr(room, "ROOM_BYTES", 4 * 6 * 3)
    memory = Room()
    pieces = [memory.take((1, 2, 3)) for _ in range(5)]
    assert not any(np.shares_memory(one, other) for one in pieces for other in pieces if one is not other)

    memory.clear()
    assert np.shares_memory(memory.take((2, 2, 3)), pieces[0])
