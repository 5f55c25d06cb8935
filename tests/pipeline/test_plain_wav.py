"""Plain WAV without a decoder: what libsndfile reads, or nothing."""

import io

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from pipeline import plain_wav
from pipeline.errors import AudioError
from pipeline.loader import Loader

_KINDS = ["PCM_16", "PCM_32", "FLOAT"]


def _wav(kind: str, n_channels: int = 1, n_samples: int = 50, rate: int = 8000) -> bytes:
    noise = np.random.default_rng(n_channels).uniform(-1, 1, size=(n_samples, n_channels))
    file = io.BytesIO()
    sf.write(file, noise, rate, subtype=kind, format="WAV")
    return file.getvalue()


def _with_chunk(content: bytes, name: bytes, body: bytes) -> bytes:
    """Put a chunk before that of the samples."""
    at = content.index(b"data")
    chunk = name + len(body).to_bytes(4, "little") + body + b"\0" * (len(body) % 2)
    size = len(content) + len(chunk) - 8
    return content[:4] + size.to_bytes(4, "little") + content[8:at] + chunk + content[at:]


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("n_channels", [1, 2, 6])
def test_samples_are_those_of_libsndfile(kind: str, n_channels: int) -> None:
    content = _wav(kind, n_channels)
    expected, rate = sf.read(io.BytesIO(content), dtype="float32", always_2d=True)
    wav = plain_wav.parse(content)
    assert wav is not None
    assert (wav.rate, wav.samples.shape) == (rate, expected.shape)
    np.testing.assert_array_equal(wav.start(30), expected[:30])
    np.testing.assert_array_equal(wav.start(10**6), expected)


def test_chunks_that_say_nothing_of_the_samples_are_passed_over() -> None:
    content = _wav("PCM_16")
    plain, tagged = (plain_wav.parse(each) for each in (content, _with_chunk(content, b"LIST", b"INFOabc")))
    assert plain is not None
    assert tagged is not None
    np.testing.assert_array_equal(tagged.samples, plain.samples)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"RIFF", id="less than a header"),
        pytest.param(_wav("PCM_16")[:-1], id="cut"),
        pytest.param(_wav("PCM_16") + b"\0\0", id="more than stated"),
        pytest.param(_wav("PCM_24"), id="24 bits"),
        pytest.param(_wav("ULAW"), id="companded"),
        pytest.param(_with_chunk(_wav("PCM_16"), b"cue ", b"1234"), id="a chunk of another kind"),
    ],
)
def test_all_else_is_left_to_libsndfile(content: bytes) -> None:
    assert plain_wav.parse(content) is None


@given(
    kind=st.sampled_from(_KINDS),
    n_channels=st.integers(1, 3),
    changes=st.lists(st.tuples(st.integers(0, 79), st.integers(0, 255)), max_size=3),
    n_cut=st.sampled_from([0, 0, 0, 1, 2, 30]),
)
def test_a_damaged_header_is_read_as_libsndfile_does_or_not_at_all(
    kind: str, n_channels: int, changes: list[tuple[int, int]], n_cut: int
) -> None:
    damaged = bytearray(_wav(kind, n_channels))
    for place, value in changes:
        damaged[place] = value
    content = bytes(damaged[: len(damaged) - n_cut])
    wav = plain_wav.parse(content)
    if wav is not None:
        expected, rate = sf.read(io.BytesIO(content), dtype="float32", always_2d=True)
        assert wav.rate == rate
        np.testing.assert_array_equal(wav.start(10**6), expected)


def test_small_and_large_files_are_judged_alike() -> None:
    # The first is read without a decoder, the second is too large for that.
    for n_samples in (100, 200_000):
        content = _wav("PCM_16", 2, n_samples)
        recording = Loader(8000, 0.01).load_bytes(content)
        expected, _ = sf.read(io.BytesIO(content), dtype="float32", always_2d=True)
        np.testing.assert_array_equal(recording.y[0], np.ascontiguousarray(expected[:80].T).mean(axis=0))
        assert recording.source_samples == n_samples
        with pytest.raises(AudioError, match="truncated"):
            Loader(8000, 100.0).load_bytes(content[:-10])
