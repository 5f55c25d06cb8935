import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pipeline.errors import ParameterError
from pipeline.normaliser import MinMaxNormaliser, float16_error

# dB of sounds; finer than a hundredth of a thousandth no float32 near 100 can tell.
decibels = st.integers(-10_000_000, 10_000_000).map(lambda steps: np.float32(steps * 1e-5))
spectrograms = arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=5), elements=decibels)
ranges = st.sampled_from([(0.0, 1.0), (-1.0, 1.0), (0.1, 0.9), (-80.0, 0.0)])


@given(spectrograms, ranges)
def test_maps_onto_the_range_and_back(S_db, ends):
    low, high = ends
    normaliser = MinMaxNormaliser(low, high)
    x, min_db, max_db = normaliser.normalise(S_db)

    assert x.dtype == min_db.dtype == max_db.dtype == np.float32
    assert min_db.shape == max_db.shape == S_db.shape[:-2]
    rounding = 2e-6 * max(abs(low), abs(high), 1)
    assert x.min() >= low - rounding
    assert x.max() <= high + rounding
    # Rounding of x to 24 bits, in dB.
    tolerance_db = 1e-6 * float(np.max(max_db - min_db)) * max(abs(low), abs(high), 1) / (high - low) + 2e-5
    np.testing.assert_allclose(normaliser.denormalise(x, min_db, max_db), S_db, rtol=0, atol=tolerance_db)


@given(spectrograms, ranges)
def test_in_place_is_the_same(S_db, ends):
    normaliser = MinMaxNormaliser(*ends)
    expected, other = normaliser.normalise(S_db), S_db.copy()
    found = normaliser.normalise(other, out=other)

    assert found[0] is other
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, two)


@given(spectrograms)
def test_is_the_formula_in_double(S_db):
    x, _, _ = MinMaxNormaliser(-1, 1).normalise(S_db)
    S = S_db.astype(np.float64)
    low, high = S.min(axis=(-2, -1), keepdims=True), S.max(axis=(-2, -1), keepdims=True)
    expected = np.where(high > low, 2 * (S - low) / np.where(high > low, high - low, 1) - 1, -1)

    np.testing.assert_allclose(x, expected, rtol=0, atol=5e-7)


@given(spectrograms)
def test_each_spectrogram_is_mapped_alone(S_db):
    normaliser = MinMaxNormaliser()
    x, min_db, max_db = normaliser.normalise(S_db)
    for index in np.ndindex(S_db.shape[:-2]):
        alone, alone_min_db, alone_max_db = normaliser.normalise(S_db[index])
        np.testing.assert_array_equal(x[index], alone)
        assert (min_db[index], max_db[index]) == (alone_min_db, alone_max_db) == (S_db[index].min(), S_db[index].max())


def test_the_ends_of_the_range_are_reached():
    x, min_db, max_db = MinMaxNormaliser(0, 1).normalise(np.array([[-80.0, -60.0], [-20.0, 0.0]], dtype=np.float32))

    assert x.tolist() == [[0.0, 0.25], [0.75, 1.0]]
    assert (min_db, max_db) == (-80, 0)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-1.0, 1.0), (0.1, 0.9)])
@pytest.mark.parametrize("level_db", [-100.0, 0.0, 12.345])
def test_a_constant_maps_to_the_minimum_and_comes_back_exactly(ends, level_db):
    S_db = np.full((2, 3, 4), level_db, dtype=np.float32)
    S_db[1, 0, 0] += 1
    normaliser = MinMaxNormaliser(*ends)
    x, min_db, max_db = normaliser.normalise(S_db)

    assert np.unique(x[0]) == np.float32(ends[0])
    np.testing.assert_array_equal(normaliser.denormalise(x, min_db, max_db)[0], S_db[0])


def test_what_leaves_the_range_a_little_is_carried_on():
    S_db = MinMaxNormaliser().denormalise(np.array([[-0.1, 1.1]], dtype=np.float32), -80.0, 0.0)

    np.testing.assert_allclose(S_db, [[-88, 8]], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (0.5, 0.5), (0.0, float("nan"))])
def test_a_range_that_does_not_rise(low, high):
    with pytest.raises(ParameterError, match=f"low={low} must be below high={high}"):
        MinMaxNormaliser(low, high)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (-1.0, 1.0), (0.1, 0.9), (-80.0, 0.0), (0.0, 300.0), (-4.0, -3.0)])
def test_half_a_step_of_float16_is_the_most_that_it_rounds(ends):
    # All that float16 can be there, and what lies halfway between its numbers.
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
    values = np.unique(values[np.isfinite(values)])
    values = np.union1d(values, (values[1:] + values[:-1]) / 2)
    values = values[(values >= ends[0]) & (values <= ends[1])]
    errors = np.abs(values.astype(np.float16) - values)

    assert errors.max() == float16_error(*ends)


def test_what_float16_cannot_hold():
    assert float16_error(0.0, 65504.0) == 16.0
    assert float16_error(0.0, 65505.0) == float("inf")
