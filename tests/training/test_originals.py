"""What is heard beside a reconstruction is what the row was made of, whatever preprocessing did."""

import numpy as np
import pytest

from pipeline.levels import Leveller
from pipeline.loader import Loader
from pipeline.parts import Parts
from tests.sounds import N_SAMPLES, write
from training.originals import Originals


@pytest.mark.parametrize("segment", ["first", "all"])
@pytest.mark.parametrize(
    "loading",
    [
        {},
        {"fold": "left", "quality": "LQ"},
        {"mono": False},
        {"trim_db": 30.0},
        {"mono": False, "trim_db": 30.0, "min_level_db": -40.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("level", [None, "peak", "loudness"])
def test_its_spectrogram_is_the_row(tmp_path, rng, make_pipeline, open_store, segment, loading, level):
    for name, n_samples, rate in (("long", 130_000, 44_100), ("exact", N_SAMPLES, 22_050), ("short", 5000, 8000)):
        y = rng.uniform(-0.5, 0.5, (n_samples, 2)) * [1.0, 0.3]
        y[: n_samples // 4] *= 1e-4
        write(tmp_path / "corpus" / f"{name}.flac", y, rate)
    leveller = Leveller(level, -6.0)
    make_pipeline(loader=Loader(**loading), leveller=leveller, segment=segment, overlap=0.25).preprocess(
        tmp_path / "corpus"
    )
    store = open_store()
    originals, parts = Originals(tmp_path / "corpus", store.format.parameters), Parts.of(store.format.parameters)
    lines = store.table.to_pylist()
    heard = [originals.load(line["clip_id"], line["segment"], line["channel"]) for line in lines]
    extremes = (np.asarray(store.table[name], dtype=np.float32) for name in ("min_db", "max_db"))
    S_db = parts.to_db(store.rows(np.arange(len(lines))), *extremes)

    assert len(lines) >= (3 if segment == "first" else 6)
    np.testing.assert_allclose(parts.extractor.extract(np.stack(heard)), S_db, rtol=0, atol=1e-4)
