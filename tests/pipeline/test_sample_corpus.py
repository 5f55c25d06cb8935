import argparse
import hashlib
import io
import os
import resource
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pretty_midi
import pytest
import soundfile as sf

from pipeline import sample_corpus
from pipeline.errors import CorpusError, ParameterError
from pipeline.loader import Loader, count_samples
from pipeline.params import PipelineParams, SampleCorpusSection, read_params
from pipeline.sample_corpus import (
    FADE_S,
    MIN_PEAK,
    PROGRAMS,
    SILENT_PEAK,
    SOUNDFONT,
    Note,
    NoteFolder,
    dry_soundfont,
    encode_note,
    is_sealed,
    list_notes,
    render_corpus,
    render_notes,
    shape_note,
)
from pipeline.stages import sample_corpus as stage

ROOT = Path(__file__).parents[2]
RATE = 22050
# One step of a 16-bit file.
STEP = 1 / 32767


def section(**changes: object) -> SampleCorpusSection:
    values = {"instruments": ["flute", "xylophone"], "pitches": [60, 69], "velocities": [48, 120]}
    return SampleCorpusSection.model_validate({**values, "sample_rate": RATE, "duration_s": 0.3, **changes})


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def note_bytes(clip_id: str, level: float = 0.5) -> bytes:
    return encode_note(clip_id, np.full(100, level, dtype=np.float32), RATE)


@pytest.fixture
def folder(tmp_path: Path) -> NoteFolder:
    return NoteFolder(tmp_path / "notes")


@pytest.fixture
def made(folder: NoteFolder) -> NoteFolder:
    """A folder with one note in each of two instruments."""
    for clip_id in ("flute/60_48.wav", "xylophone/60_48.wav"):
        folder.put(clip_id, note_bytes(clip_id))
    return folder


def spectral_peak_hz(y: np.ndarray) -> float:
    n_fft = 1 << 17
    return float(np.argmax(np.abs(np.fft.rfft(y * np.hanning(len(y)), n_fft))) * RATE / n_fft)


class TestNames:
    def test_programs_are_general_midis(self):
        assert len(PROGRAMS) == 128
        # As the specification numbers them, from 1.
        for name, number in {"acoustic_grand_piano": 1, "flute": 74, "lead_8_bass_lead": 88, "gunshot": 128}.items():
            assert PROGRAMS[name] == number - 1

    def test_every_combination_once(self):
        notes = list_notes(section())
        assert len(notes) == len({note.clip_id for note in notes}) == 8
        assert notes[-1].clip_id == "xylophone/69_120.wav"

    def test_unknown_instrument_names_the_nearest(self):
        with pytest.raises(ParameterError, match=r"instruments='acoustic_grand'.*did you mean acoustic_grand_piano\?"):
            list_notes(section(instruments=["acoustic_grand"]))

    def test_velocity_zero_is_no_note(self):
        with pytest.raises(ParameterError, match="velocities=0 must be 1 to 127"):
            list_notes(section(velocities=[0, 64]))

    @pytest.mark.parametrize(
        ("name", "values", "twice"),
        [("instruments", ["flute", "flute"], "'flute'"), ("pitches", [60, 61, 60], "60"), ("velocities", [9, 9], "9")],
    )
    def test_listed_twice(self, name, values, twice):
        with pytest.raises(ParameterError, match=rf"sample_corpus\.{name} lists {twice} more than once"):
            list_notes(section(**{name: values}))

    def test_default_parameters(self):
        default = read_params(PipelineParams, ROOT / "params.yaml").sample_corpus
        assert len(default.instruments) >= 40
        assert 1600 <= len(list_notes(default)) <= 1800


class TestRendering:
    @pytest.mark.parametrize("instrument", ["flute", "clarinet", "violin", "ocarina", "lead_1_square"])
    def test_fundamental_is_the_pitch(self, instrument):
        pitches = [57, 69, 81]
        notes = render_notes(PROGRAMS[instrument], [(pitch, 100) for pitch in pitches], RATE, 0.74)
        for pitch, y in zip(pitches, notes, strict=True):
            expected = 440.0 * 2 ** ((pitch - 69) / 12)
            found = spectral_peak_hz(y)
            # An overtone may be the loudest: the peak is a whole multiple of the pitch, within a quarter of a semitone.
            multiple = round(found / expected)
            assert 1 <= multiple <= 4
            assert abs(1200 * np.log2(found / (multiple * expected))) < 25

    def test_flute_a4_peaks_at_440_hz(self):
        (y,) = render_notes(PROGRAMS["flute"], [(69, 100)], RATE, 0.74)
        n_fft = 4096
        bins = np.abs(np.fft.rfft(y[:n_fft] * np.hanning(n_fft)))
        assert np.argmax(bins) == round(440 * n_fft / RATE)

    @pytest.mark.parametrize(("sample_rate", "duration_s"), [(22050, 0.74), (48000, 0.1), (44100, 1.2345), (8000, 0.3)])
    def test_length_is_exact(self, sample_rate, duration_s):
        for y in render_notes(PROGRAMS["flute"], [(60, 100), (72, 100)], sample_rate, duration_s):
            assert y.shape == (count_samples(duration_s, sample_rate),)
            assert y.dtype == np.float32

    def test_a_note_alone_is_the_note_among_others(self):
        # A long release, a loud neighbour and reverb would each carry over.
        notes = [(60, 127), (60, 30), (84, 127), (36, 20)]
        together = render_notes(PROGRAMS["string_ensemble_1"], notes, RATE, 0.3)
        for note, y in zip(notes, together, strict=True):
            (alone,) = render_notes(PROGRAMS["string_ensemble_1"], [note], RATE, 0.3)
            np.testing.assert_array_equal(y, alone)

    def test_calls_of_the_renderer_leave_no_trace(self, monkeypatch):
        notes = [(60, 100), (62, 100), (64, 100)]
        together = list(render_notes(PROGRAMS["xylophone"], notes, RATE, 0.3))
        # Two notes to a call, then one.
        monkeypatch.setattr(sample_corpus, "_MAX_RENDER_S", 0.7)
        np.testing.assert_array_equal(list(render_notes(PROGRAMS["xylophone"], notes, RATE, 0.3)), together)

    def test_a_note_starts_at_its_first_sample(self):
        (y,) = render_notes(PROGRAMS["xylophone"], [(72, 120)], RATE, 0.3)
        assert np.argmax(np.abs(y) > 0.1 * np.abs(y).max()) < 0.005 * RATE

    def test_louder_velocities_are_louder(self):
        peaks = [np.abs(y).max() for y in render_notes(0, [(60, v) for v in (32, 64, 96, 127)], RATE, 0.3)]
        assert peaks == sorted(peaks)
        # Amplitude follows the square of velocity (SoundFont 2.01, 8.4.1).
        np.testing.assert_allclose(peaks[0] / peaks[3], (32 / 127) ** 2, rtol=0.02)

    def test_soundfont_is_the_one_whose_licence_we_state(self):
        font = resources.files(pretty_midi).joinpath(SOUNDFONT).read_bytes()
        assert len(font) == 5_994_284
        assert hashlib.sha256(font).hexdigest() == "82475b91a76de15cb28a104707d3247ba932e228bada3f47bba63c6b31aaf7a1"

    def test_only_effect_sends_differ_in_the_dry_soundfont(self):
        wet = np.frombuffer(resources.files(pretty_midi).joinpath(SOUNDFONT).read_bytes(), dtype="<u2")
        dry = np.frombuffer(dry_soundfont(), dtype="<u2")
        changed = np.flatnonzero(wet != dry)
        assert changed.size > 1000
        # The word before each amount says what it is the amount of: 15 chorus, 16 reverb.
        assert set(wet[changed - 1].tolist()) == {15, 16}
        assert not dry[changed].any()


class TestShape:
    def test_fade_is_half_a_hann_window(self):
        y = shape_note(np.full(RATE, 0.5, dtype=np.float32), RATE)
        n = count_samples(FADE_S, RATE)
        expected = 0.5 * np.sin(0.5 * np.pi * (1 - np.arange(1, n + 1) / n)) ** 2
        np.testing.assert_array_equal(y[:-n], np.float32(0.5))
        np.testing.assert_allclose(y[-n:], expected, atol=1e-7)
        assert y[-1] == 0.0

    @pytest.mark.parametrize(
        ("peak", "expected"), [(MIN_PEAK / 4, MIN_PEAK), (MIN_PEAK, MIN_PEAK), (2 * MIN_PEAK, 2 * MIN_PEAK), (1.0, 1.0)]
    )
    def test_only_quiet_notes_are_raised(self, peak, expected, rng):
        y = rng.uniform(-1, 1, RATE).astype(np.float32)
        y *= np.float32(peak) / np.abs(y[: RATE // 2]).max()
        y[RATE // 2 :] *= np.float32(0.5)
        shaped = shape_note(y, RATE)
        np.testing.assert_allclose(np.abs(shaped).max(), expected, rtol=1e-5)

    @pytest.mark.parametrize("level", [0.0, 0.99 * SILENT_PEAK])
    def test_silence_is_no_note(self, level):
        assert shape_note(np.full(RATE, level, dtype=np.float32), RATE) is None

    def test_note_shorter_than_its_fade(self):
        y = shape_note(np.ones(10, dtype=np.float32), RATE)
        assert y.shape == (10,)
        assert y[-1] == 0.0

    def test_pitch_that_an_instrument_lacks_is_silent(self):
        # The font's whistle ends below it.
        ((note, content),) = render_corpus([Note("whistle", 84, 120)], RATE, 0.3)
        assert note.clip_id == "whistle/84_120.wav"
        assert content is None


class TestSeal:
    def test_file_is_what_was_asked_for(self):
        y = np.linspace(-1.2, 1.2, 999, dtype=np.float32)
        content = encode_note("flute/60_48.wav", y, RATE)
        info = sf.info(io.BytesIO(content))
        assert (info.format, info.subtype, info.channels, info.samplerate) == ("WAV", "PCM_16", 1, RATE)
        samples, _ = sf.read(io.BytesIO(content), dtype="int16")
        np.testing.assert_allclose(samples * STEP, np.clip(y, -1, 1), atol=0.5 * STEP + 1e-7)

    def test_licence_travels_with_the_note(self):
        with sf.SoundFile(io.BytesIO(note_bytes("flute/60_48.wav"))) as file:
            assert file.copyright == "Rendered from TimGM6mb.sf2: GPL-2.0-only, (C) 2004 Tim Brechbill"

    def test_seal_is_the_digest_of_name_and_bytes(self):
        content = note_bytes("flute/60_48.wav")
        with sf.SoundFile(io.BytesIO(content)) as file:
            digest = file.comment.split()[-1]
        unsealed = content.replace(digest.encode(), b"0" * 64)
        assert digest == hashlib.sha256(b"flute/60_48.wav\0" + unsealed).hexdigest()

    def test_every_byte_is_sealed(self):
        content = note_bytes("flute/60_48.wav")
        assert is_sealed("flute/60_48.wav", content)
        for index in range(len(content)):
            changed = bytearray(content)
            changed[index] ^= 1
            assert not is_sealed("flute/60_48.wav", bytes(changed)), index

    @pytest.mark.parametrize("changed", [b"", b"RIFF", note_bytes("flute/60_48.wav")[:-2], note_bytes("a") + b"cue "])
    def test_other_bytes_are_not_sealed(self, changed):
        assert not is_sealed("flute/60_48.wav", changed)

    def test_name_is_sealed(self):
        assert not is_sealed("flute/61_48.wav", note_bytes("flute/60_48.wav"))


class TestFolder:
    def test_writes_once(self, made):
        before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*.wav")}
        assert len(before) == 2
        assert not made.put("flute/60_48.wav", note_bytes("flute/60_48.wav"))
        assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*.wav")} == before

    def test_replaces_its_own(self, made):
        louder = note_bytes("flute/60_48.wav", 0.9)
        assert made.put("flute/60_48.wav", louder)
        assert tree(made.folder)["flute/60_48.wav"] == louder

    def test_removes_what_is_not_kept_and_its_folder(self, made):
        assert made.remove_except({"flute/60_48.wav"}) == 1
        assert sorted(path.name for path in made.folder.rglob("*")) == ["60_48.wav", "flute"]

    def test_absent_folder(self, folder):
        assert folder.list_own() == set()
        assert folder.remove_except(set()) == 0

    @pytest.mark.parametrize(
        "name",
        [
            "mine.wav",
            "flute/mine.wav",
            "flute/60_72.wav",
            "flute/60_72.txt",
            "takes/60_48.wav",
            "flute/takes/60_48.wav",
            ".hidden",
            "flute/.60_72.wav.partial",
            "flute/.60_72.wav.0123456789abcdef.partial",
            "takes/.60_72.wav.0123456789abcdef.partial",
        ],
    )
    @pytest.mark.parametrize("content", [b"mine", b"RIFF" + bytes(5000), note_bytes("flute/60_48.wav")[::-1]])
    def test_refuses_what_is_not_its_own(self, made, name, content):
        path = made.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        before = tree(made.folder)
        message = rf"notes holds files .* did not make.*: 1, first '{name}'; move them .* set corpus\.dir"
        with pytest.raises(CorpusError, match=message):
            made.list_own()
        with pytest.raises(CorpusError, match=message):
            made.remove_except(set())
        if name == "flute/60_72.wav":
            with pytest.raises(CorpusError, match=r"60_72\.wav is not a note that the sample_corpus stage made"):
                made.put(name, note_bytes(name))
        assert tree(made.folder) == before

    def test_refuses_its_own_note_once_changed(self, made):
        path = made.folder / "flute/60_48.wav"
        path.write_bytes(path.read_bytes() + b"cue \x04\x00\x00\x00mine")
        with pytest.raises(CorpusError, match=r"or that changed since: 1, first 'flute/60_48\.wav'"):
            made.remove_except(set())
        assert path.read_bytes().endswith(b"mine")

    def test_refuses_its_own_note_once_renamed(self, made):
        kept = (made.folder / "flute/60_48.wav").rename(made.folder / "flute/my favourite.wav")
        with pytest.raises(CorpusError, match=r"first 'flute/my favourite\.wav'"):
            made.remove_except(set())
        assert kept.exists()

    def test_refuses_a_name_that_is_not_utf8(self, made):
        (Path(os.fsdecode(os.fsencode(made.folder) + b"/\xff.wav"))).write_bytes(note_bytes("x"))
        with pytest.raises(CorpusError, match=r"first '\\udcff\.wav'"):
            made.list_own()

    def test_counts_what_it_refuses(self, made):
        for name in "cab":
            (made.folder / name).write_text(name)
        with pytest.raises(CorpusError, match="changed since: 3, first 'a';"):
            made.list_own()

    def test_refuses_links_to_folders_and_pipes(self, made, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/60_48.wav").write_text("mine")
        (made.folder / "oboe").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        os.mkfifo(made.folder / "flute/61_48.wav")
        with pytest.raises(CorpusError, match=r"changed since: 2, first 'flute/61_48\.wav'"):
            made.remove_except(set())
        assert (tmp_path / "elsewhere/60_48.wav").read_text() == "mine"

    def test_refuses_a_file_in_its_place(self, folder):
        folder.folder.write_text("mine")
        with pytest.raises(CorpusError, match="notes is not a folder; move it away"):
            folder.list_own()

    def test_removes_what_a_killed_run_left(self, made):
        partial = made.folder / "flute/.60_72.wav.0123456789abcdef.partial"
        for content in (b"", note_bytes("flute/60_72.wav")[:300], note_bytes("flute/60_72.wav")):
            partial.write_bytes(content)
            assert made.remove_except({"flute/60_48.wav", "xylophone/60_48.wav"}) == 1
            assert not partial.exists()

    def test_leaves_what_desktops_leave(self, made):
        (made.folder / "flute/.DS_Store").write_text("x")
        assert made.remove_except(set()) == 2
        assert tree(made.folder) == {"flute/.DS_Store": b"x"}

    def test_leaves_folders_of_other_names(self, made):
        (made.folder / "plans").mkdir()
        made.remove_except(set())
        assert [path.name for path in made.folder.iterdir()] == ["plans"]

    @pytest.mark.parametrize("link", [os.link, os.symlink])
    def test_leaves_what_dvc_links_to(self, made, tmp_path, link):
        cached, path = tmp_path / "cached", made.folder / "flute/60_48.wav"
        path.rename(cached)
        cached.chmod(0o444)
        link(cached, path)
        assert made.put("flute/60_48.wav", note_bytes("flute/60_48.wav", 0.1))
        assert cached.read_bytes() == note_bytes("flute/60_48.wav")
        assert path.read_bytes() == note_bytes("flute/60_48.wav", 0.1)

    def test_leaves_no_partial_file_when_the_disk_refuses(self, made):
        before = tree(made.folder)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                made.put("flute/60_48.wav", note_bytes("flute/60_48.wav", 0.9))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert tree(made.folder) == before


class TestStage:
    def test_twice_the_same_bytes(self, tmp_path):
        notes = {name: NoteFolder(tmp_path / name) for name in ("one", "two")}
        for folder in notes.values():
            counts = stage.make_corpus(section(), folder)
            assert counts == {"written": 8, "unchanged": 0, "silent left out": 0, "removed": 0}
        assert tree(tmp_path / "one") == tree(tmp_path / "two")
        again = stage.make_corpus(section(), notes["one"])
        assert again == {"written": 0, "unchanged": 8, "silent left out": 0, "removed": 0}

    def test_other_parameters_leave_what_they_share(self, tmp_path):
        folder = NoteFolder(tmp_path / "notes")
        stage.make_corpus(section(), folder)
        before = tree(folder.folder)
        counts = stage.make_corpus(section(instruments=["oboe", "xylophone"], pitches=[69]), folder)
        assert counts == {"written": 2, "unchanged": 2, "silent left out": 0, "removed": 6}
        after = tree(folder.folder)
        assert set(after) == {f"{name}/69_{v}.wav" for name in ("oboe", "xylophone") for v in (48, 120)}
        assert all(after[name] == before[name] for name in set(after) & set(before))

    def test_silent_notes_are_left_out_and_earlier_ones_removed(self, folder):
        folder.put("whistle/84_120.wav", note_bytes("whistle/84_120.wav"))
        counts = stage.make_corpus(section(instruments=["whistle"], pitches=[72, 84], velocities=[120]), folder)
        assert counts == {"written": 1, "unchanged": 0, "silent left out": 1, "removed": 1}
        assert set(tree(folder.folder)) == {"whistle/72_120.wav"}

    def test_what_is_left_is_what_the_loader_wants(self, folder):
        stage.make_corpus(section(duration_s=0.74), folder)
        for name in tree(folder.folder):
            recording = Loader(RATE, 0.74).load(folder.folder / name)
            assert recording.y.shape == (1, count_samples(0.74, RATE))
            assert np.abs(recording.y).max() >= MIN_PEAK - STEP
            assert recording.y[0, -1] == 0.0

    def test_finishes_what_a_killed_run_began(self, folder, tmp_path):
        whole = NoteFolder(tmp_path / "whole")
        stage.make_corpus(section(), whole)
        for name in sorted(tree(whole.folder))[:3]:
            folder.put(name, (whole.folder / name).read_bytes())
        partial = folder.folder / "flute/.69_120.wav.0123456789abcdef.partial"
        partial.write_bytes((whole.folder / "flute/69_120.wav").read_bytes()[:5000])
        counts = stage.make_corpus(section(), folder)
        assert counts == {"written": 5, "unchanged": 3, "silent left out": 0, "removed": 1}
        assert tree(folder.folder) == tree(whole.folder)

    def test_command_line(self, tmp_path, write_params):
        write_params({"sample_corpus.instruments": ["flute"], "sample_corpus.pitches": [69]})
        mine = tmp_path / "data/sample_corpus/flute/mine.wav"

        def run() -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-W", "error", "-m", "pipeline.stages.sample_corpus"]
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

        made = run()
        assert (made.returncode, made.stderr) == (0, "")
        assert made.stdout.splitlines() == [
            "sample_corpus: 4 written, 0 unchanged, 0 silent left out, 0 removed",
            "sample_corpus: rendered from TimGM6mb.sf2 of pretty_midi, GPL-2.0-only, (C) 2004 Tim Brechbill",
        ]
        mine.write_text("mine")
        refused = run()
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr.count("\n") == 1
        assert refused.stderr.startswith("error: data/sample_corpus holds files that the sample_corpus stage did not")
        assert mine.read_text() == "mine"

    def test_a_folder_that_cannot_be_made_is_one_line(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "data").write_text("a file")
        with pytest.raises(CorpusError, match=r"data/sample_corpus.*: cannot be read or written: Not a directory"):
            stage.main(argparse.Namespace(params=ROOT / "params.yaml"))
