"""Levels before spectrograms: off by default, exact when asked for, and undone on the way back."""

import numpy as np
import pyloudnorm as pyln
import pytest

from pipeline.levels import Leveller
from pipeline.loader import Loader
from pipeline.parts import Parts
from tests.sounds import N_SAMPLES, SAMPLE_RATE, sine, write


def peak_of(y):
    return np.abs(y).max(axis=-1)


def invert(store):
    """Return the sound of a store's first row."""
    (line,) = store.table.to_pylist()
    parts = Parts.of(store.format.parameters)
    min_db, max_db, gain_db = (np.float32([line[name]]) for name in ("min_db", "max_db", "gain_db"))
    return parts.invert(parts.to_db(store.rows(np.array([0])), min_db, max_db), gain_db, N_SAMPLES)


def test_nothing_is_done_unless_asked_for(rng):
    y = rng.uniform(-0.1, 0.1, (3, N_SAMPLES)).astype(np.float32)
    gains_db = Leveller().gains_db(y, peak_of(y))

    assert not gains_db.any()
    assert Leveller().apply(y, gains_db) is y


def test_peaks_are_brought_to_one_level():
    y = np.stack([sine(300.0, amplitude=amplitude) for amplitude in (0.001, 0.5, 3.0, 0.0)])
    leveller = Leveller("peak", -6.0)
    gains_db = leveller.gains_db(y, peak_of(y))
    found = leveller.apply(y, gains_db)

    np.testing.assert_allclose(peak_of(found)[:3], 10 ** (-6 / 20), rtol=1e-5)
    assert gains_db[3] == 0.0
    assert not found[3].any()


def test_loudness_is_brought_to_one_level(rng):
    y = np.stack([sine(997.0), 0.01 * sine(300.0), rng.uniform(-0.2, 0.2, N_SAMPLES), np.zeros(N_SAMPLES)])
    y = y.astype(np.float32)
    leveller = Leveller("loudness", -23.0, SAMPLE_RATE)
    found = leveller.apply(y, leveller.gains_db(y, peak_of(y)))

    for signal in found[:3]:
        assert pyln.Meter(SAMPLE_RATE).integrated_loudness(signal.astype(float)) == pytest.approx(-23.0, abs=0.01)
    assert not found[3].any()


def test_a_full_scale_sine_has_the_loudness_of_the_standard():
    # ITU-R BS.1770-4: 0 dB of full scale at 997 Hz in one channel are -3.01 LUFS, which meters must show to 0.1.
    y = sine(997.0, 48_000, 48_000, amplitude=1.0)[None]

    assert Leveller("loudness", -3.01, 48_000).gains_db(y, peak_of(y))[0] == pytest.approx(0.0, abs=0.1)


def test_the_gain_is_in_the_table_and_undone(tmp_path, make_pipeline, open_store):
    write(tmp_path / "corpus" / "a.wav", sine(1000.0, amplitude=0.05), 22_050, subtype="FLOAT")
    make_pipeline("plain").preprocess(tmp_path / "corpus")
    make_pipeline("level", leveller=Leveller("peak", 0.0)).preprocess(tmp_path / "corpus")
    plain, level = open_store("plain"), open_store("level")
    (before,), (after,) = plain.table.to_pylist(), level.table.to_pylist()

    assert after["gain_db"] == pytest.approx(-20 * np.log10(0.05), abs=1e-3)
    assert after["peak"] == before["peak"] == pytest.approx(0.05, rel=1e-3)
    assert after["max_db"] - before["max_db"] == pytest.approx(after["gain_db"], abs=1e-4)
    # Both come back as loud as each other, where one was 20 times as loud. Rounding grows as phases are found, so that
    # single samples may differ.
    plain_rms, level_rms = (np.sqrt(np.mean(invert(store) ** 2)) for store in (plain, level))
    assert level_rms == pytest.approx(plain_rms, rel=0.01)
    assert plain_rms == pytest.approx(0.05 / np.sqrt(2), rel=0.2)


@pytest.mark.parametrize(("fold", "expected"), [("mean", 0.25), ("left", 0.5), ("right", 0.0)])
def test_channels_are_folded_as_asked(tmp_path, fold, expected):
    y = np.stack([np.full(4000, 0.5), np.zeros(4000)], axis=1)
    path = write(tmp_path / "a.wav", y, 8000, subtype="FLOAT")
    mono = write(tmp_path / "b.wav", y[:, 0], 8000, subtype="FLOAT")

    np.testing.assert_array_equal(Loader(8000, 0.5, fold=fold).load(path).y, np.full((1, 4000), expected))
    np.testing.assert_array_equal(Loader(8000, 0.5, fold=fold).load(mono).y, np.full((1, 4000), 0.5))


def test_a_better_quality_lets_less_of_an_alias_through(tmp_path):
    # 14 kHz does not exist at 22.05 kHz; what a filter leaves of it would be heard at 8.05 kHz.
    path = write(tmp_path / "a.wav", sine(14_000.0, 48_000, 48_000), 48_000, subtype="FLOAT")
    left = [np.abs(Loader(quality=quality).load(path).y[0, 2000:-2000]).max() for quality in ("LQ", "MQ", "HQ", "VHQ")]

    assert left[0] > 3 * left[2]
    assert max(left[2:]) < 1e-4
