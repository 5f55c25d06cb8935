"""The default corpus: notes of General MIDI instruments, rendered from the soundfont that `pretty_midi` ships.

Licence of that soundfont, TimGM6mb.sf2: GNU General Public License, version 2 only, (C) 2004 Tim Brechbill, as Debian
and Alpine state for the edition that they package. Debian's copyright file quotes the author: "I created some of the
samples myself and all others are either public domain or fall under the terms of the GNU General Public License."
`pretty_midi` ships another edition of 5,994,284 bytes; neither its wheel, itself MIT, nor the font's header names a
licence. Neither the font nor a note is part of this repository: each machine renders its own.

A note's bytes follow from its name, the rate and the duration, whatever else is rendered. So the font's reverb and
chorus are off: a room that rings for nearly two seconds would carry each note into the next ones.
"""

import difflib
import hashlib
import io
import math
import os
import re
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import groupby, product
from pathlib import Path

import midirenderer
import numpy as np
import pretty_midi
import soundfile as sf
import soxr
from numpy.typing import NDArray

from pipeline.errors import CorpusError, ParameterError
from pipeline.loader import count_samples
from pipeline.params import SampleCorpusSection

SOUNDFONT = "TimGM6mb.sf2"
SOUNDFONT_LICENCE = "GPL-2.0-only, (C) 2004 Tim Brechbill"

# -34 dBFS. The font's medians are -30 at velocity 48 and -14 at 120. Dynamics are part of the corpus: a note keeps the
# level that instrument and velocity give it, unless it would hardly be heard.
MIN_PEAK = 0.02
# -60 dBFS, 33 steps of the renderer's 16 bits. Below lie notes that an instrument of the font does not have.
SILENT_PEAK = 0.001
# Long enough that the end of a held note does not click.
FADE_S = 0.02

# The renderer acts on events at the start of a block. A tick is half of one, and events stand half a block early, so
# that no rounding moves a note by a block.
_RENDER_RATE = 48_000
_BLOCK = 64
_TICKS_PER_S = 2 * _RENDER_RATE // _BLOCK
# Of one call of the renderer, which bounds its memory.
_MAX_RENDER_S = 120.0
_VOLUME, _REVERB_SEND, _CHORUS_SEND, _ALL_SOUND_OFF = 7, 91, 93, 120
# SoundFont 2.01, section 8.1.2: chorusEffectsSend and reverbEffectsSend.
_EFFECT_SENDS = (15, 16)

_MARK = b"Generative-Music sample_corpus, sealed by sha256 "
_SEAL = re.compile(re.escape(_MARK) + rb"([0-9a-f]{64})")
_UNSEALED = b"0" * 64
# More than the bytes before a note's samples.
_HEAD_BYTES = 4096
_PARTIAL = re.compile(r"(?P<instrument>\w+)/\.\d+_\d+\.wav\.[0-9a-f]{16}\.partial")
# What systems leave in folders that people look into: neither ours nor worth stopping for.
_DESKTOP_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})

# General MIDI's programs, from 0, by the names of their folders, such as acoustic_grand_piano.
PROGRAMS: dict[str, int] = {
    re.sub(r"[^a-z0-9]+", "_", pretty_midi.program_to_instrument_name(program).lower()).strip("_"): program
    for program in range(128)
}


@dataclass(frozen=True, slots=True)
class Note:
    """One note of the corpus.

    Attributes
    ----------
    instrument : str
        A key of `PROGRAMS`.
    pitch, velocity : int
        As MIDI numbers them: 69 is A4 at 440 Hz; 1 is softest, 127 loudest.
    """

    instrument: str
    pitch: int
    velocity: int

    @property
    def clip_id(self) -> str:
        """Path of its file, relative to the corpus."""
        return f"{self.instrument}/{self.pitch}_{self.velocity}.wav"


def list_notes(section: SampleCorpusSection) -> list[Note]:
    """Return every instrument at every pitch and velocity, instrument by instrument.

    Raises
    ------
    ParameterError
        An instrument is unknown, a velocity is 0, or something is listed twice.
    """
    for name in ("instruments", "pitches", "velocities"):
        twice = [value for value, count in Counter(getattr(section, name)).items() if count > 1]
        if twice:
            raise ParameterError(f"sample_corpus.{name} lists {twice[0]!r} more than once")
    for slug in section.instruments:
        if slug not in PROGRAMS:
            nearest = difflib.get_close_matches(slug, PROGRAMS, n=1, cutoff=0.0)[0]
            raise ParameterError(
                f"sample_corpus.instruments={slug!r} must be an instrument of General MIDI (did you mean {nearest}?)"
            )
    if 0 in section.velocities:
        raise ParameterError("sample_corpus.velocities=0 must be 1 to 127: MIDI ends a note by velocity 0")
    return [Note(*each) for each in product(section.instruments, section.pitches, section.velocities)]


def render_corpus(notes: list[Note], sample_rate: int, duration_s: float) -> Iterator[tuple[Note, bytes | None]]:
    """Yield each note with the bytes of its WAV file at a rate in Hz, or with None where it is silent.

    Neighbours of one instrument are rendered together, since the renderer reads the soundfont at every call.
    """
    for instrument, same in groupby(notes, key=lambda note: note.instrument):
        members = list(same)
        rendered = render_notes(PROGRAMS[instrument], [(n.pitch, n.velocity) for n in members], sample_rate, duration_s)
        for note, y in zip(members, rendered, strict=True):
            shaped = shape_note(y, sample_rate)
            yield note, None if shaped is None else encode_note(note.clip_id, shaped, sample_rate)


def render_notes(
    program: int, notes: list[tuple[int, int]], sample_rate: int, duration_s: float
) -> Iterator[NDArray[np.float32]]:
    """Yield notes of one instrument, each held for the whole duration, as the renderer makes them.

    Parameters
    ----------
    program : int
        General MIDI program, from 0.
    notes : list of (pitch, velocity)
        In MIDI numbers.
    sample_rate : int
        In Hz.
    duration_s : float
        In seconds.

    Yields
    ------
    ndarray of float32, shape (n_samples,)
        As `count_samples` has it. Stereo is folded into the mean of both channels.
    """
    n_samples = count_samples(duration_s, sample_rate)
    # One sample more than the duration, whatever the rates: the resampler rounds.
    held = _BLOCK * math.ceil((duration_s + 1 / sample_rate) * _RENDER_RATE / _BLOCK)
    slot = held + 2 * _BLOCK
    n_together = max(1, int(_MAX_RENDER_S * _RENDER_RATE / slot))
    for first in range(0, len(notes), n_together):
        batch = notes[first : first + n_together]
        wav = midirenderer.render_wave_from(dry_soundfont(), _write_midi(program, batch, slot, held))
        y, rate = sf.read(io.BytesIO(wav), dtype="float32", always_2d=True)
        assert rate == _RENDER_RATE, rate
        mono = y.mean(axis=1)
        for index in range(1, len(batch) + 1):
            cut = mono[index * slot : index * slot + held]
            yield soxr.resample(cut, rate, sample_rate, quality="HQ")[:n_samples]


def shape_note(y: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32] | None:
    """Fade a note's end and raise a quiet note to `MIN_PEAK`; return None for a silent one.

    Parameters
    ----------
    y : ndarray of float32, shape (n_samples,)
        The note.
    sample_rate : int
        In Hz.
    """
    n_faded = min(count_samples(FADE_S, sample_rate), len(y))
    # The second half of a Hann window, down to zero at the last sample.
    fade = 0.5 + 0.5 * np.cos(np.pi * np.arange(1, n_faded + 1) / n_faded)
    faded = np.concatenate([y[: len(y) - n_faded], y[len(y) - n_faded :] * fade.astype(np.float32)])
    peak = float(np.abs(faded).max(initial=0.0))
    if peak < SILENT_PEAK:
        return None
    return faded * np.float32(max(1.0, MIN_PEAK / peak))


def encode_note(clip_id: str, y: NDArray[np.float32], sample_rate: int) -> bytes:
    """Return a 16-bit mono WAV file, sealed.

    The seal, in the file's comment, is the SHA-256 of its name and its bytes, the seal's own digits as zeros. It is
    broken in a note that somebody renamed, edited or annotated.

    Parameters
    ----------
    clip_id : str
        Path relative to the corpus.
    y : ndarray of float32, shape (n_samples,)
        The note; what lies outside -1..1 is clipped.
    sample_rate : int
        In Hz.
    """
    buffer = io.BytesIO()
    with sf.SoundFile(buffer, "w", sample_rate, channels=1, subtype="PCM_16", format="WAV") as file:
        # Before the samples, so that libsndfile puts them there.
        file.copyright = f"Rendered from {SOUNDFONT}: {SOUNDFONT_LICENCE}"
        file.comment = (_MARK + _UNSEALED).decode()
        file.write(np.rint(np.clip(y, -1.0, 1.0) * np.float32(32767)).astype(np.int16))
    content = buffer.getvalue()
    return content.replace(_MARK + _UNSEALED, _MARK + _digest(clip_id, content), 1)


def is_sealed(clip_id: str, content: bytes) -> bool:
    """Return whether a file is, under this name and to the byte, one that `encode_note` made."""
    match = _SEAL.search(content, 0, _HEAD_BYTES)
    if match is None:
        return False
    return match[1] == _digest(clip_id, content[: match.start(1)] + _UNSEALED + content[match.end(1) :])


@cache
def dry_soundfont() -> bytes:
    """Return the soundfont with every send to reverb and chorus at zero."""
    font = bytearray(resources.files(pretty_midi).joinpath(SOUNDFONT).read_bytes())
    lists = {bytes(font[start : start + 4]): (start + 4, end) for _, start, end in _chunks(font, 12, len(font))}
    for name, start, end in _chunks(font, *lists[b"pdta"]):
        if name in (b"pgen", b"igen"):
            fields = np.frombuffer(font, "<u2", count=(end - start) // 2, offset=start).reshape(-1, 2)
            fields[np.isin(fields[:, 0], _EFFECT_SENDS), 1] = 0
    return bytes(font)


class NoteFolder:
    """A folder of sealed notes, absent or not. Nothing else in it is ever removed or replaced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list_own(self) -> set[str]:
        """Return the paths, relative to the folder, of sealed notes and of what killed runs left.

        Raises
        ------
        CorpusError
            The folder holds anything else.
        """
        if not os.path.lexists(self.folder):
            return set()
        if not self.folder.is_dir():
            raise CorpusError(f"{self.folder} is not a folder; move it away, the sample corpus goes there")
        names = set(self._walk())
        own = {name for name in names if self._is_own(name)}
        if foreign := names - own:
            raise CorpusError(
                f"{self.folder} holds files that the sample_corpus stage did not make, or that changed since: "
                f"{len(foreign)}, first {min(foreign)!r}; move them to a folder of their own and set corpus.dir to it"
            )
        return own

    def put(self, clip_id: str, content: bytes) -> bool:
        """Write a note, unless it is there already; return whether it was written.

        A file gets its name only when it is whole. A link is replaced, not what it leads to, which may be DVC's cache.

        Raises
        ------
        CorpusError
            There is a file of this name that is no sealed note.
        """
        path = self.folder / clip_id
        if os.path.lexists(path):
            if not self._is_own(clip_id):
                raise CorpusError(f"{path} is not a note that the sample_corpus stage made; move it away")
            if path.read_bytes() == content:
                return False
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        try:
            temporary.write_bytes(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def remove_except(self, kept: set[str]) -> int:
        """Remove own files that are not kept, and instruments' folders that are empty; return how many files."""
        stale = self.list_own() - kept
        for name in stale:
            (self.folder / name).unlink()
        for instrument in PROGRAMS:
            folder = self.folder / instrument
            if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
                folder.rmdir()
        return len(stale)

    def _walk(self) -> Iterator[str]:
        """Yield the relative path of everything that is no folder; a link to a folder is none."""
        for parent, folders, files in os.walk(self.folder, onerror=_raise):
            paths = [Path(parent, name) for name in files if name not in _DESKTOP_FILES]
            paths += [path for name in folders if (path := Path(parent, name)).is_symlink()]
            yield from (path.relative_to(self.folder).as_posix() for path in paths)

    def _is_own(self, name: str) -> bool:
        """Return whether this class wrote a file: a sealed note, or the start of one under a partial file's name."""
        path = self.folder / name
        # A pipe, say, would block the reader.
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            partial = _PARTIAL.fullmatch(name)
            if partial and partial["instrument"] in PROGRAMS:
                return not head or _MARK in head
            return _MARK in head and is_sealed(name, head + file.read())


def _write_midi(program: int, notes: list[tuple[int, int]], slot: int, held: int) -> bytes:
    """Return a MIDI file with a note every `slot` samples of the renderer, from the second slot on."""
    song = pretty_midi.PrettyMIDI(resolution=_TICKS_PER_S, initial_tempo=60.0)
    player = pretty_midi.Instrument(program)
    # Full volume, since the renderer answers in 16 bits: the louder, the finer.
    for control, value in ((_VOLUME, 127), (_REVERB_SEND, 0), (_CHORUS_SEND, 0)):
        player.control_changes.append(pretty_midi.ControlChange(control, value, 0.0))
    for index, (pitch, velocity) in enumerate(notes, start=1):
        start = (index * slot - _BLOCK // 2) / _RENDER_RATE
        end = start + held / _RENDER_RATE
        player.notes.append(pretty_midi.Note(velocity, pitch, start, end))
        player.control_changes.append(pretty_midi.ControlChange(_ALL_SOUND_OFF, 0, end))
    # The renderer stops at the last event.
    player.control_changes.append(pretty_midi.ControlChange(_ALL_SOUND_OFF, 0, (len(notes) + 1) * slot / _RENDER_RATE))
    song.instruments.append(player)
    buffer = io.BytesIO()
    song.write(buffer)
    return buffer.getvalue()


def _chunks(data: bytearray, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of each chunk of a RIFF list."""
    while start < end:
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        yield bytes(data[start : start + 4]), start + 8, start + 8 + size
        start += 8 + size + size % 2


def _digest(clip_id: str, content: bytes) -> bytes:
    """Return the seal's digits for a file whose own are zeros."""
    return hashlib.sha256(os.fsencode(clip_id) + b"\0" + content).hexdigest().encode()


def _raise(error: OSError) -> None:
    """Raise what `os.walk` would pass over."""
    raise error
