"""What is sound, and what is not, by its first bytes."""

import io
import os
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st

from pipeline.signatures import LIBSNDFILE, identify
from tests.sounds import sine

# What libsndfile does not know again without being told: samples without a header, and forks of old Macintoshes.
NAMELESS = {"RAW", "SD2"}


def read_from(content):
    """Return what `identify` wants of a file in memory."""
    return lambda n_bytes, start: content[start : start + n_bytes]


def encodings():
    """Return every format and subtype that libsndfile writes for one channel at 8 kHz."""
    pairs = [(name, subtype) for name in sf.available_formats() for subtype in sf.available_subtypes(name)]
    return [(name, subtype) for name, subtype in pairs if name not in NAMELESS and _is_written(name, subtype)]


def _is_written(name, subtype):
    return not (
        (name, subtype) in {("AIFF", "DWVW_12"), ("WAV", "MPEG_LAYER_III")}
        or (name == "MP3" and subtype != "MPEG_LAYER_III")
    )


@pytest.mark.parametrize(("name", "subtype"), encodings())
def test_whatever_libsndfile_writes_is_known_again(name, subtype):
    file = io.BytesIO()
    sf.write(file, sine(500.0, 5000, 8000), 8000, format=name, subtype=subtype)

    assert identify(read_from(file.getvalue())) == LIBSNDFILE


@pytest.mark.parametrize("name", ["WAV", "FLAC", "MP3"])
@pytest.mark.parametrize("n_bytes", [0, 1, 127, 128, 5000])
def test_a_tag_of_any_length_may_stand_before(name, n_bytes):
    file = io.BytesIO()
    sf.write(file, sine(500.0, 5000, 8000), 8000, format=name)
    size = bytes(n_bytes >> shift & 0x7F for shift in (21, 14, 7, 0))

    assert identify(read_from(b"ID3\3\0\0" + size + bytes(n_bytes) + file.getvalue())) == LIBSNDFILE


@pytest.mark.parametrize(
    ("version", "rate"), [("mpeg 1", 44_100), ("mpeg 1", 48_000), ("mpeg 2", 22_050), ("mpeg 2.5", 8000)]
)
def test_mpeg_frames_are_counted_on_from_one_to_the_next(version, rate):
    file = io.BytesIO()
    sf.write(file, sine(500.0, 3 * rate, rate), rate, format="MP3")
    content = file.getvalue()
    known = [start for start in range(len(content) - 4) if identify(read_from(content[start:])) == LIBSNDFILE]

    # Where each frame starts, by its header's first bytes, and hardly anywhere else.
    n_frames = content.count(content[:2])
    assert known[0] == 0, version
    assert 40 < n_frames <= len(known) + 2 < 1.2 * n_frames


ADTS = bytes([0xFF, 0xF1, 0x50, 0x80, 0x02, 0x1F, 0xFC]) + bytes(9)
CONTAINERS = {
    "mov": [
        b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom\0\0\0\0",
        b"\0\0\0\x14ftypqt  \0\0\0\0",
        b"\0\0\0\x08wide\0\0\0\x10mdat",
        b"\0\0\0\1mdat" + bytes(20),
    ],
    "matroska": [b"\x1aE\xdf\xa3\x01\0\0\0\0\0\0\x1fB\x86"],
    "avi": [b"RIFF\x24\x10\0\0AVI LIST"],
    "asf": [b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\0\xaa\0b\xcel"],
    "aac": [ADTS * 4, ADTS * 2, b"ID3\4\0\0\0\0\0\x05hello" + ADTS * 3],
    "mpegts": [(b"G" + bytes(187)) * 5, (bytes(4) + b"G" + bytes(187)) * 5],
    "mpeg": [b"\0\0\1\xba" + bytes(10)],
    "flv": [b"FLV\1\5\0\0\0\t"],
    "ogg": [b"OggS\0\2" + bytes(20) + b"\1\x2a\x80theora"],
}


@pytest.mark.parametrize("demuxer", CONTAINERS)
def test_containers(demuxer):
    assert [identify(read_from(content)) for content in CONTAINERS[demuxer]] == [demuxer] * len(CONTAINERS[demuxer])


OTHERS = {
    "nothing": b"",
    "one byte": b"\xff",
    "text": b"The wide world of sound, moov, mdat and free.\n" * 10,
    "text at an atom's name": b"The wide world",
    "utf-16": ("\ufeff" + "a,b,c\n1,2,3\n" * 50).encode("utf-16-le"),
    "csv": b"clip,label\na.wav,1\n" * 100,
    "json": b'{"RIFF": "WAVE"}',
    "png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(100),
    "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(100),
    "webp": b"RIFF\x24\0\0\0WEBPVP8 " + bytes(30),
    "a MIDI file in RIFF": b"RIFF\x24\0\0\0RMIDdata" + bytes(30),
    "midi": b"MThd\0\0\0\6\0\1\0\2\1\xe0MTrk",
    "soundfont": b"RIFF\x24\0\0\0sfbkLIST" + bytes(30),
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(30),
    "an iff picture": b"FORM\0\0\1\0ILBMBMHD",
    "zip": b"PK\3\4" + bytes(60),
    "numpy": b"\x93NUMPY\1\0v\0{'descr': '<f4', 'fortran_order': False}",
    "sqlite": b"SQLite format 3\0" + bytes(100),
    "matlab without sound": b"MATLAB 5.0 MAT-file".ljust(124, b" ") + b"\0\1IM" + bytes(200),
    "zeros": bytes(5000),
    "ones": b"\xff" * 5000,
    "a short number": b"\1\4" + bytes(40),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_sound(name):
    assert identify(read_from(OTHERS[name])) is None


@pytest.mark.parametrize(
    "path", [Path(sys.executable), Path(__file__), Path(io.__file__)], ids=lambda path: path.suffix
)
def test_programs_are_no_sound(path):
    with path.open("rb") as file:
        assert identify(partial(os.pread, file.fileno())) is None


@given(st.binary(max_size=2000))
def test_any_bytes_are_one_or_the_other(content):
    assert identify(read_from(content)) in {None, LIBSNDFILE, *CONTAINERS, "amr", "ape", "wv", "tta", "mpc", "mpc8"}


def test_noise_is_hardly_ever_taken_for_sound(rng):
    contents = (rng.integers(0, 256, 3000, dtype=np.uint8).tobytes() for _ in range(3000))

    assert sum(identify(read_from(content)) is not None for content in contents) == 0


@given(st.text(min_size=1, max_size=300))
def test_text_is_no_sound(text):
    # But for what is written at the start of a file of sound, which no text begins with by chance.
    for encoding in ("utf-8", "utf-16"):
        assert identify(read_from(text.encode(encoding))) is None
