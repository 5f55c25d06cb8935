import numpy as np
import pytest

from training.codes import Codes
from training.generation import Move, choose_moves, choose_pairs, interpolate, label_means, map_codes, move


def make_codes(z):
    z = np.asarray(z, dtype=np.float32)
    return Codes(z, np.arange(len(z), dtype=np.float32) - 80, np.arange(len(z), dtype=np.float32))


def test_an_interpolation_goes_straight_from_end_to_end():
    codes = make_codes([[0, 8], [4, 0]])
    found = interpolate(codes.take(np.array([0])), codes.take(np.array([1])), 5)

    np.testing.assert_allclose(found.z, [[0, 8], [1, 6], [2, 4], [3, 2], [4, 0]])
    np.testing.assert_allclose(found.max_db, [0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(found.max_db - found.min_db, 80)


def test_pairs_are_of_different_rows_and_follow_from_the_generator():
    once, again = (choose_pairs(5, 100, np.random.default_rng(1)) for _ in range(2))

    assert once == again
    assert len(once) == 100
    assert all(first != second for first, second in once)
    assert {row for pair in once for row in pair} == set(range(5))
    assert choose_pairs(1, 3, np.random.default_rng(1)) == []


def test_the_mean_of_each_label():
    z = np.array([[0, 0], [2, 4], [9, 9], [5, 5]], dtype=np.float32)
    means = label_means(z, ["b", "b", None, "a"])

    assert list(means) == ["a", "b"]
    np.testing.assert_array_equal(means["b"], [1, 2])


def test_a_move_takes_one_label_away_and_puts_another_in_its_place():
    """What is the mean of its label becomes the mean of the other; levels stay."""
    codes = make_codes([[0, 0], [1, 2], [10, 0]])
    means = label_means(codes.z, ["a", "a", "b"])
    at_mean = Codes(np.array([means["a"]]), codes.min_db[:1], codes.max_db[:1])

    np.testing.assert_allclose(move(at_mean, [Move(0, "a", "b")], means).z, [means["b"]])
    there = move(codes, [Move(1, "a", "b")], means)
    np.testing.assert_allclose(move(there, [Move(0, "b", "a")], means).z, codes.z[1:2], atol=1e-6)
    assert there.max_db.tolist() == [1.0]
    assert move(codes, [], means).z.shape == (0, 2)


def test_moves_are_from_a_rows_own_label_to_another():
    labels = ["a", None, "b", "c", "unknown"]
    moves = choose_moves(labels, ["a", "b", "c"], 60, np.random.default_rng(0))

    assert len(moves) == 60
    for each in moves:
        assert labels[each.row] == each.source != each.target
    assert {each.row for each in moves} == {0, 2, 3}
    assert {each.target for each in moves} == {"a", "b", "c"}


@pytest.mark.parametrize(("labels", "known"), [([None, None], ["a", "b"]), (["a", "a"], ["a"]), ([], [])])
def test_no_moves_without_two_labels(labels, known):
    assert choose_moves(labels, known, 4, np.random.default_rng(0)) == []


def test_neighbours_are_neighbours_on_the_map(rng):
    centres = rng.normal(scale=20, size=(4, 16))
    of = np.repeat(np.arange(4), 15)
    points = map_codes((centres[of] + rng.normal(size=(60, 16))).astype(np.float32), seed=0)
    away = np.linalg.norm(points[:, None] - points[None], axis=2) + 10 * np.eye(60)

    assert points.min() == 0
    assert points.max() == 1
    assert (of[away.argmin(axis=1)] == of).mean() > 0.95


@pytest.mark.parametrize("n", [0, 1, 3, 4, 7])
def test_a_map_of_few(rng, n):
    z = rng.normal(size=(n, 5)).astype(np.float32)
    points = map_codes(z, seed=0)

    assert points.shape == (n, 2)
    assert ((points >= 0) & (points <= 1)).all()
    np.testing.assert_array_equal(points, map_codes(z, seed=0))
