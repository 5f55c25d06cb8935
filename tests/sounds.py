"""Signals and sound files that tests make, and digests of what came out."""

import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile as sf

SAMPLE_RATE = 22050
N_SAMPLES = 16317  # 0.74 s


def sine(frequency_hz, n_samples=N_SAMPLES, sample_rate=SAMPLE_RATE, amplitude=0.5):
    """Return a sine (n_samples,)."""
    phase = 2 * np.pi * frequency_hz * np.arange(n_samples) / sample_rate
    return (amplitude * np.sin(phase)).astype(np.float32)


def signals(rng):
    """Return signals (n_samples,) in which different things are hard, by name."""
    t = np.arange(N_SAMPLES) / SAMPLE_RATE
    impulse = np.zeros(N_SAMPLES, dtype=np.float32)
    impulse[N_SAMPLES // 2] = 1.0
    step = np.zeros(N_SAMPLES, dtype=np.float32)
    step[N_SAMPLES // 3 :] = 0.8
    made = {
        "sine": sine(1000.0),
        "chirp": 0.5 * scipy.signal.chirp(t, 50.0, t[-1], 11000.0),
        "white noise": rng.uniform(-0.9, 0.9, N_SAMPLES),
        "impulse": impulse,
        "step": step,
        "quiet": sine(440.0, amplitude=3e-5) + rng.uniform(-1e-6, 1e-6, N_SAMPLES),
    }
    return {name: y.astype(np.float32) for name, y in made.items()}


def write(path, y, sample_rate=8000, **options):
    """Write a signal (n_samples,) or (n_samples, n_channels) as a file, make its folder, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(os.fsencode(path), y, sample_rate, **options)
    return path


def write_corpus(folder, rng, n_clips=6):
    """Write short clips of two speakers, which take 16-bit WAV without loss, and return the folder."""
    for index in range(n_clips):
        y = rng.integers(-8000, 8000, 500 + 37 * index).astype(np.int16)
        write(folder / f"speaker{index % 2}" / f"{index}.wav", y)
    return folder


def cut(path, share=0.6):
    """Cut a file off after a share of its bytes, and return its path."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def patch_wav_length(path, n_bytes):
    """Let a WAV file's header state a length, as an encoder that writes to a pipe does."""
    content = bytearray(path.read_bytes())
    start = content.index(b"data") + 4
    content[start : start + 4] = struct.pack("<I", n_bytes)
    content[4:8] = struct.pack("<I", min(n_bytes + 36, 0xFFFF_FFFF))
    path.write_bytes(content)
    return path


def digest(*paths):
    """Return one SHA-256 of the names and bytes of files, and of all files below folders."""
    sha256 = hashlib.sha256()
    for path in map(Path, paths):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                sha256.update(f"{file.name} {file.stat().st_size}\n".encode())
                sha256.update(file.read_bytes())
    return sha256.hexdigest()
