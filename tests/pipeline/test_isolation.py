"""Decoders that crash, hang or swell cost the file that they died of, and nothing else."""

import gc
import io
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import psutil
import pytest
import soundfile as sf

from pipeline import isolation
from pipeline.errors import AudioError
from pipeline.isolation import IsolatedLoader, Limits
from pipeline.loader import Loader
from pipeline.padder import Padder
from pipeline.recording import Recording
from tests.containers import write_container
from tests.pipeline.deadly import DeadlyLoader, SlowLoader
from tests.sounds import cut, patch_wav_length, sine, write

LIMITS = Limits(cpu_s=1, wall_s=100.0, memory_bytes=1 << 30)
# What becomes of each death, and what is said of it.
DEATHS = {
    "SEGFAULT": ("decoder died", "the decoder's process was ended by SIGSEGV"),
    "ABORT": ("decoder died", "the decoder's process was ended by SIGABRT"),
    "EXIT": ("decoder died", "the decoder's process ended with status 3"),
    "RAISE": ("decoder died", "the decoder's process ended with status 1"),
    "LOOP": ("decoder died", "the decoder took more than 1 s of a processor"),
    "SLEEP": ("decoder died", "no answer in 3 s"),
    "SWELL": ("too large", "decoding it takes more memory than there is"),
}


@pytest.fixture(autouse=True)
def no_children_left():
    """End the children of a test, and those of tests before it."""
    isolation._end_children()
    isolation._children.clear()
    yield
    for child in isolation._children.values():
        if not child.is_dead:
            child.end()
    isolation._children.clear()
    gc.collect()


def described(error):
    return error.reason, error.detail


@pytest.fixture
def formats(tmp_path, rng):
    """Files of many formats, and two that are none."""
    y = rng.uniform(-0.5, 0.5, (9000, 2))
    paths = [write(tmp_path / f"a.{suffix}", y, 44_100) for suffix in "wav flac ogg mp3 aiff au caf w64".split()]
    paths.append(cut(write(tmp_path / "cut.flac", y, 44_100)))
    (tmp_path / "text.ogg").write_text("this is not a sound")
    return [*paths, tmp_path / "text.ogg", tmp_path / "missing.flac"]


def test_what_is_loaded_in_a_child_is_what_is_loaded_here(formats):
    loader = Loader()
    isolated = IsolatedLoader(loader)

    for found, expected in zip(isolated.load_many(formats), loader.load_many(formats), strict=True):
        if isinstance(expected, AudioError):
            assert described(found) == described(expected)
        else:
            np.testing.assert_array_equal(found.y, expected.y, strict=True)
            assert replace(found, y=None) == replace(expected, y=None)
    assert len(isolation._children) == 1


def test_segments_and_facts_are_those_of_the_loader(tmp_path, rng):
    path = write(tmp_path / "a.flac", rng.uniform(-0.5, 0.5, (200_000, 2)), 44_100)
    loader = Loader(mono=False)
    isolated, facts = IsolatedLoader(loader), loader.examine(path)

    assert isolated.examine(path) == facts
    found = [y for block in isolated.stream(path, facts, range(2, 7), 100) for y in block]
    expected = [y for block in loader.stream(path, facts, range(2, 7), 100) for y in block]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)
    with pytest.raises(AudioError, match=r"^unreadable: No such file"):
        isolated.examine(tmp_path / "missing.flac")


@pytest.mark.parametrize("death", DEATHS)
def test_a_death_costs_one_file(tmp_path, rng, death):
    paths = [write(tmp_path / f"{index}.flac", rng.uniform(-0.5, 0.5, 3000)) for index in range(5)]
    paths[2].write_bytes(death.encode().ljust(16, b"\n"))
    loader = DeadlyLoader()
    limits = replace(LIMITS, wall_s=3.0) if death == "SLEEP" else LIMITS
    found = IsolatedLoader(loader, limits).load_many(paths)

    assert described(found.pop(2)) == DEATHS[death]
    for ours, theirs in zip(found, loader.load_many([*paths[:2], *paths[3:]]), strict=True):
        np.testing.assert_array_equal(ours.y, theirs.y, strict=True)


def test_several_deaths_at_once(tmp_path, rng):
    paths = [write(tmp_path / f"{index}.flac", rng.uniform(-0.5, 0.5, 3000)) for index in range(8)]
    for place in (0, 3, 4, 7):
        paths[place].write_bytes(b"SEGFAULT".ljust(16, b"\n"))
    found = IsolatedLoader(DeadlyLoader(), LIMITS).load_many(paths)

    assert [isinstance(each, AudioError) for each in found] == [place in {0, 3, 4, 7} for place in range(8)]


def test_a_child_that_was_killed_from_outside_is_replaced(tmp_path, rng):
    path = write(tmp_path / "a.flac", rng.uniform(-0.5, 0.5, 3000))
    isolated = IsolatedLoader(Loader())
    others = set(psutil.Process().children())
    (first,) = isolated.load_many([path])
    (child,) = set(psutil.Process().children()) - others
    child.kill()
    (second,) = isolated.load_many([path])

    np.testing.assert_array_equal(first.y, second.y)


def test_an_answer_of_any_size(tmp_path, rng):
    path = write(tmp_path / "a.flac", rng.uniform(-0.5, 0.5, (400_000, 8)), 44_100)
    small = write(tmp_path / "b.flac", rng.uniform(-0.5, 0.5, 100), 44_100)
    loader = Loader(44_100, 10.0, mono=False)
    found = IsolatedLoader(loader).load_many([small, path, small])

    assert [each.y.shape for each in found] == [(1, 100), (8, 400_000), (1, 100)]
    np.testing.assert_array_equal(found[1].y, loader.load(path).y)


def test_what_goes_on_may_take_long(tmp_path, rng):
    path = write(tmp_path / "a.flac", rng.uniform(-0.5, 0.5, 3000))

    # More than three seconds of a processor, of which one may pass without a sign of life.
    assert IsolatedLoader(SlowLoader(), replace(LIMITS, cpu_s=1)).examine(path) == Loader().examine(path)
    (found,) = IsolatedLoader(SlowLoader(trim_db=40.0), replace(LIMITS, cpu_s=1)).load_many([path])
    np.testing.assert_array_equal(found.y, Loader().load(path).y)


def test_a_child_ends_with_its_parent(pytestconfig, tmp_path, rng):
    path = write(tmp_path / "a.flac", rng.uniform(-0.5, 0.5, 3000))
    program = """
import os, signal, sys
from pipeline.isolation import IsolatedLoader
from pipeline.loader import Loader
from pipeline.padder import Padder
import psutil
IsolatedLoader(Loader()).load_many([sys.argv[1]])
print(psutil.Process().children()[0].pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    finished = subprocess.run(
        [sys.executable, "-c", program, path], cwd=pytestconfig.rootpath, capture_output=True, check=False, timeout=60
    )
    assert finished.returncode == -signal.SIGKILL
    end = time.monotonic() + 20
    while psutil.pid_exists(int(finished.stdout)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not psutil.pid_exists(int(finished.stdout))


# --- a table of hostile files


def put(path, content):
    path.write_bytes(content)


def huge_header(path):
    """A WAV whose header promises 8 channels of 4 GiB."""
    path.write_bytes(write(path, np.zeros((10, 8)), 48_000).read_bytes())
    patch_wav_length(path, 0x7EFF_FFF0)


def flac_of_unknown_length(path):
    content = bytearray(write(path, sine(100.0, 5000)).read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)


def flipped(path):
    content = bytearray(write(path, sine(100.0, 50_000)).read_bytes())
    content[200:2000] = bytes(value ^ 0x5A for value in content[200:2000])
    path.write_bytes(content)


def other_suffix(path):
    buffer = io.BytesIO()
    sf.write(buffer, sine(100.0, 5000), 8000, format="FLAC")
    path.write_bytes(buffer.getvalue())


def unknown_codec(path):
    write_container(path, sine(100.0, 9000), 8000, "flac", "matroska")
    path.write_bytes(path.read_bytes().replace(b"A_FLAC", b"A_FLOC"))


def with_value(value):
    def make(path):
        y = sine(100.0, 1000)
        y[7] = value
        write(path, y, subtype="FLOAT")

    return make


# What each is, how it is made, and what becomes of it: a row, or a reason.
HOSTILE = {
    "empty.wav": (lambda path: put(path, b""), "not audio"),
    "one byte.flac": (lambda path: put(path, b"f"), "not audio"),
    "text.mp3": (lambda path: put(path, b"this is not a sound\n" * 50), "not audio"),
    "zeros.ogg": (lambda path: put(path, bytes(10_000)), "not audio"),
    "a script.wav": (lambda path: put(path, b"#!/bin/sh\necho no\n"), "not audio"),
    "header only.wav": (lambda path: put(path, write(path, np.zeros(0)).read_bytes()), "empty"),
    "cut.wav": (lambda path: cut(write(path, sine(100.0, 5000))), "truncated"),
    "cut.aiff": (lambda path: cut(write(path, sine(100.0, 5000))), "truncated"),
    "cut.flac": (lambda path: cut(write(path, sine(100.0, 5000))), {"truncated", "not audio", "empty"}),
    "cut.ogg": (lambda path: cut(write(path, sine(100.0, 5000))), {"truncated", "not audio", "empty"}),
    "cut.voc": (lambda path: cut(write(path, sine(100.0, 5000), format="VOC")), "truncated"),
    "cut.sph": (lambda path: cut(write(path, sine(100.0, 5000), format="NIST")), "truncated"),
    "cut.opus": (
        lambda path: cut(write(path, sine(100.0, 5000), format="OGG", subtype="OPUS")),
        {"truncated", "not audio"},
    ),
    "promises more.wav": (lambda path: patch_wav_length(write(path, sine(100.0, 500)), 5000), "truncated"),
    "promises gigabytes.wav": (huge_header, "truncated"),
    "from a pipe.wav": (lambda path: patch_wav_length(write(path, sine(100.0, 5000)), 0xFFFF_FFFF), "row"),
    "from a pipe.flac": (flac_of_unknown_length, "unknown length"),
    "flipped.flac": (flipped, {"truncated", "not audio", "unknown length", "row"}),
    "flac as.wav": (other_suffix, "row"),
    "nan.wav": (with_value(np.nan), "not finite"),
    "infinity.wav": (with_value(np.inf), "not finite"),
    "far too loud.wav": (with_value(1e30), "too loud"),
    "over full scale.wav": (with_value(7.5), "row"),
    "silent.wav": (lambda path: write(path, np.zeros(3000)), "row"),
    "one sample.wav": (lambda path: write(path, np.full(1, 0.5)), "row"),
    "less than a sample.wav": (lambda path: write(path, np.full(1, 0.5), 192_000), "empty"),
    "many channels.wav": (lambda path: write(path, np.zeros((500, 64))), "row"),
    "cut.m4a": (lambda path: cut(write_container(path, sine(100.0, 9000), 8000, "aac", "ipod")), "truncated"),
    "cut.webm": (lambda path: cut(write_container(path, sine(100.0, 9000), 8000, "libopus", "webm")), "truncated"),
    "zeros.m4a": (lambda path: put(path, bytes(10_000)), "not audio"),
    "m4a as.wav": (lambda path: write_container(path, sine(100.0, 9000), 8000, "aac", "ipod"), "row"),
    "an audio track.mkv": (lambda path: write_container(path, sine(100.0, 9000), 8000, "flac", "matroska"), "row"),
    "an unknown codec.mkv": (unknown_codec, "unsupported"),
    "in parts.aiff": (lambda path: write(path, sine(100.0, 9000), subtype="DWVW_16"), "unsupported"),
    "a megahertz.wav": (lambda path: write(path, sine(100.0, 50_000), 1_000_000), "row"),
    "dies.ogg": (lambda path: put(path, b"SEGFAULT".ljust(16, b"\n")), "decoder died"),
    "aborts.mp3": (lambda path: put(path, b"ABORT".ljust(16, b"\n")), "decoder died"),
}


@pytest.mark.parametrize("segment", ["first", "all"])
def test_every_hostile_file_is_accounted_for(tmp_path, rng, make_pipeline, open_store, segment):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name, (make, _) in HOSTILE.items():
        make(corpus / name)
    for index in range(5):
        write(corpus / f"good {index}.flac", rng.uniform(-0.5, 0.5, 3000))
    report = make_pipeline(loader=DeadlyLoader(), max_rejected_share=1.0, segment=segment).preprocess(corpus)
    found = {each.clip_id: each.reason for each in report.rejected}
    found |= dict.fromkeys(open_store().table["clip_id"].to_pylist(), "row")

    if segment == "all":  # nothing of these is decoded before it is known that they are no sound
        assert found.pop("dies.ogg") == found.pop("aborts.mp3") == "not audio"
    expected = {name: reason for name, (_, reason) in HOSTILE.items()} | {
        f"good {index}.flac": "row" for index in range(5)
    }
    assert {
        name: (reason, expected[name])
        for name, reason in found.items()
        if reason not in (expected[name] if isinstance(expected[name], set) else {expected[name]})
    } == {}
    assert len(found) == len(expected) - (2 if segment == "all" else 0)
    open_store().verify()
    x = open_store().rows(np.arange(report.counts["rows"]))
    assert np.isfinite(x).all()


def test_the_documents_say_what_becomes_of_each(pytestconfig):
    text = (pytestconfig.rootpath / "docs" / "files.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `([^`]+)` \|[^|]+\| ([^|]+) \|$", text, re.MULTILINE))

    assert {name: set(outcome.split(" or ")) for name, outcome in table.items()} == {
        name: reason if isinstance(reason, set) else {reason} for name, (_, reason) in HOSTILE.items()
    }


# --- fuzz


FUZZED = Limits(cpu_s=10, wall_s=60.0, memory_bytes=1 << 30)
# What may be said of a mutated file.
REASONS = {
    *("sound", "not audio", "truncated", "empty", "unknown length", "not finite", "too loud"),
    *("decoder died", "too large", "damaged", "changing format", "unsupported"),
}


def originals(rng, folder):
    """Return files of several formats as bytes."""
    y = rng.uniform(-0.5, 0.5, (2500, 2))
    found = [
        write_container(folder / f"original.{suffix}", y, 16_000, codec, format).read_bytes()
        for suffix, codec, format in (
            ("m4a", "aac", "ipod"),
            ("mp4", "alac", "mp4"),
            ("mkv", "flac", "matroska"),
            ("webm", "libopus", "webm"),
            ("avi", "pcm_s16le", "avi"),
            ("ts", "aac", "mpegts"),
            ("aac", "aac", "adts"),
        )
    ]
    for options in (
        {"format": "WAV", "subtype": "PCM_16"},
        {"format": "WAV", "subtype": "PCM_24"},
        {"format": "WAV", "subtype": "FLOAT"},
        {"format": "WAV", "subtype": "IMA_ADPCM"},
        {"format": "FLAC"},
        {"format": "OGG", "subtype": "VORBIS"},
        {"format": "OGG", "subtype": "OPUS"},
        {"format": "MP3"},
        {"format": "AIFF"},
        {"format": "AU"},
        {"format": "CAF", "subtype": "ALAC_16"},
        {"format": "W64"},
        {"format": "NIST"},
        {"format": "VOC"},
        {"format": "SVX"},
    ):
        buffer = io.BytesIO()
        sf.write(buffer, y[:, 0] if options["format"] == "SVX" else y, 8000, **options)
        found.append(buffer.getvalue())
    return found


def mutate(rng, whole, other):
    """Return a file cut, with bytes altered, or with the start of another one."""
    content = bytearray(whole)
    kind = rng.integers(4)
    if kind == 0:
        del content[rng.integers(1, len(content)) :]
    if kind == 1:
        splice = int(rng.integers(1, 200))
        content[:splice] = other[:splice]
    for _ in range(int(rng.integers(0 if kind < 2 else 1, 8))):
        # Mostly in the header, which is where harm is done.
        end = min(len(content), 120) if rng.integers(3) else len(content)
        content[rng.integers(end)] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
    if kind == 3:
        start = int(rng.integers(len(content)))
        content[start : start + 100] = content[:100]
    return bytes(content)


def mutants(tmp_path, seed, number):
    """Yield paths of mutated files, a hundred at a time."""
    rng = np.random.default_rng(seed)
    wholes = originals(rng, tmp_path)
    for start in range(0, number, 100):
        paths = []
        for index in range(start, min(start + 100, number)):
            whole, other = (wholes[place] for place in rng.integers(0, len(wholes), 2))
            paths.append(tmp_path / f"{index % 100}.snd")
            paths[-1].write_bytes(mutate(rng, whole, other))
        yield paths


def fuzz(tmp_path, seed, number):
    """Load mutated files; return how many were sound, and the reasons of the others."""
    isolated = IsolatedLoader(Loader(), FUZZED)
    reasons = []
    for paths in mutants(tmp_path, seed, number):
        found = isolated.load_many(paths)
        assert len(found) == len(paths)
        for each in found:
            if isinstance(each, Recording):
                assert np.isfinite(each.y).all()
                assert 0 < each.y.shape[1] <= isolated.n_samples
            reasons.append("sound" if isinstance(each, Recording) else each.reason)
    return reasons


def test_a_thousand_mutated_files(tmp_path):
    reasons = fuzz(tmp_path, 1, 1000)

    assert len(reasons) == 1000
    # Neither all of them harmless, nor none: the fuzz reaches what it is for.
    assert 50 < reasons.count("sound") < 950
    assert set(reasons) <= REASONS


def fuzz_segments(tmp_path, seed, number, loader):
    """Cut mutated files into segments; return how many were sound, and the reasons of the others."""
    isolated, reasons = IsolatedLoader(loader, FUZZED), []
    for path in (path for paths in mutants(tmp_path, seed, number) for path in paths):
        try:
            facts = isolated.examine(path)
            n_segments = Padder().count_segments(isolated.count_resampled(facts), isolated.n_samples, 0)
            # No header is believed that promises much more than the file can hold.
            assert facts.source_samples <= 16 * path.stat().st_size
            # But for one of a sample in a second.
            n_segments, lengths = min(n_segments, 500), []
            for block in isolated.stream(path, facts, range(n_segments), 0):
                assert all(np.isfinite(y).all() for y in block)
                lengths.extend(y.shape[1] for y in block)
        except AudioError as error:
            reasons.append(error.reason)
        else:
            # Every sample that was announced, and no other.
            assert sum(lengths) == min(isolated.count_resampled(facts), 500 * isolated.n_samples)
            assert set(lengths[:-1]) <= {isolated.n_samples}
            reasons.append("sound")
    return reasons


@pytest.mark.parametrize("loading", [{}, {"trim_db": 3.0, "min_level_db": -40.0}], ids=["whole", "trimmed"])
def test_segments_of_mutated_files(tmp_path, loading):
    reasons = fuzz_segments(tmp_path, 3, 200, Loader(8000, 0.05, **loading))

    assert len(reasons) == 200
    assert 10 < reasons.count("sound") < 190
    assert set(reasons) <= REASONS | ({"quiet"} if loading else set())


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_ten_thousand_mutated_files(tmp_path):
    before = psutil.Process().memory_info().rss
    reasons = fuzz(tmp_path, int(os.environ.get("FUZZ_SEED", "2")), 10_000)

    assert len(reasons) == 10_000
    assert psutil.Process().memory_info().rss - before < 500 << 20


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("loading", [{}, {"trim_db": 3.0, "min_level_db": -40.0}], ids=["whole", "trimmed"])
def test_segments_of_three_thousand_mutated_files(tmp_path, loading):
    seed = int(os.environ.get("FUZZ_SEED", "4"))
    reasons = fuzz_segments(tmp_path, seed, 3000, Loader(8000, 0.05, **loading))

    assert len(reasons) == 3000
    assert set(reasons) <= REASONS | ({"quiet"} if loading else set())
