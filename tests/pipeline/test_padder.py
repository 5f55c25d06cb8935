import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ParameterError
from pipeline.padder import Padder

Y = np.array([1, 2, 3], dtype=np.float32)


@pytest.mark.parametrize(
    ("mode", "left", "right"),
    [
        ("constant", [0, 0, 1, 2, 3], [1, 2, 3, 0, 0]),
        ("edge", [1, 1, 1, 2, 3], [1, 2, 3, 3, 3]),
        ("reflect", [3, 2, 1, 2, 3], [1, 2, 3, 2, 1]),
    ],
)
def test_left_and_right(mode, left, right):
    padder = Padder(mode)

    assert padder.left_pad(Y, 2).tolist() == left
    assert padder.right_pad(Y, 2).tolist() == right
    assert padder.pad(Y, 5).tolist() == right


def test_every_channel_is_padded_alone(rng):
    y = rng.normal(size=(3, 5)).astype(np.float32)
    padded = Padder("reflect").pad(y, 9)

    assert padded.dtype == np.float32
    np.testing.assert_array_equal(padded, [Padder("reflect").pad(channel, 9) for channel in y])


def test_a_signal_of_the_right_length_stays_as_it_is():
    assert Padder().pad(Y, 3) is Y


@pytest.mark.parametrize("mode", ["constant", "edge"])
def test_a_stack_is_each_signal_padded(mode, rng):
    signals = [rng.normal(size=(n_channels, n)).astype(np.float32) for n_channels, n in [(1, 3), (2, 7), (1, 1)]]
    padder = Padder(mode)

    np.testing.assert_array_equal(padder.stack(signals, 7), np.concatenate([padder.pad(y, 7) for y in signals]))
    with pytest.raises(ParameterError, match="at most n_samples=6"):
        padder.stack(signals, 6)


def test_padding_never_cuts():
    with pytest.raises(ParameterError, match="y has 3 samples and must have at most n_samples=2"):
        Padder().pad(Y, 2)


def test_segments_of_a_known_signal():
    segments = Padder().cut(np.arange(1, 8, dtype=np.float32), n_samples=4, n_overlap=1)

    assert segments.tolist() == [[1, 2, 3, 4], [4, 5, 6, 7]]
    assert Padder().cut(np.arange(1, 9, dtype=np.float32), 4, 1).tolist() == [
        [1, 2, 3, 4],
        [4, 5, 6, 7],
        [7, 8, 0, 0],
    ]
    assert Padder().cut(np.arange(1, 3, dtype=np.float32), 4, 1).tolist() == [[1, 2, 0, 0]]


lengths = st.integers(1, 300)


@given(lengths, st.integers(2, 60), st.floats(0, 0.5))
def test_segments_are_windows_of_the_padded_signal(n_total, n_samples, share):
    n_overlap = int(share * n_samples)
    y = np.arange(1, n_total + 1, dtype=np.float32)
    segments = Padder().cut(y, n_samples, n_overlap)

    starts = list(range(0, max(n_total - n_overlap, 1), n_samples - n_overlap))
    padded = np.concatenate([y, np.zeros(n_samples, dtype=np.float32)])
    np.testing.assert_array_equal(segments, [padded[start : start + n_samples] for start in starts])


@given(lengths, st.integers(2, 60), st.floats(0, 0.5), st.integers(0, 2**32 - 1))
def test_join_undoes_cut(n_total, n_samples, share, seed):
    n_overlap = int(share * n_samples)
    y = np.random.default_rng(seed).uniform(-1, 1, n_total).astype(np.float32)
    joined = Padder().join(Padder().cut(y, n_samples, n_overlap), n_overlap, n_total)

    # Two products and a sum in float32 where segments overlap.
    np.testing.assert_allclose(joined, y, rtol=0, atol=3e-7, strict=True)


def test_segments_fade_linearly_into_each_other():
    joined = Padder().join(np.array([[0, 0, 0, 0], [1, 1, 1, 1]], dtype=np.float32), n_overlap=2, n_total=6)

    assert joined.tolist() == [0, 0, 0.25, 0.75, 1, 1]
