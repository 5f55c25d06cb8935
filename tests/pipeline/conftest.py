"""What several tests of `pipeline` need: a parameter file, and one embedded Ray for all of them."""

import pytest
from ruamel.yaml import YAML

from pipeline.params import PARAMS_FILE

# What tests count on; everything else is as in the repository's own file.
_FIXED = {
    "corpus.dir": "sounds",
    "corpus.label": r"^(?P<label>[^/]+)/",
    "sample_corpus.instruments": ["Flute"],
    "preprocess.sample_rate": 22050,
    "preprocess.duration_s": 0.74,
    "preprocess.mono": True,
    "preprocess.fold": "mean",
    "preprocess.resampling": "HQ",
    "preprocess.trim_db": None,
    "preprocess.min_level_db": None,
    "preprocess.level": None,
    "preprocess.level_db": -1.0,
    "preprocess.segment": "first",
    "preprocess.overlap": 0.25,
    "preprocess.n_fft": 512,
    "preprocess.hop_length": 256,
    "preprocess.drop_nyquist": True,
    "preprocess.ref": 1.0,
    "preprocess.amin": 1e-5,
    "preprocess.top_db": 80.0,
    "preprocess.range": [0.0, 1.0],
    "preprocess.dtype": "float32",
    "preprocess.max_rejected_share": 0.05,
    "split.group": None,
    "split.test": None,
    "split.validation_share": 0.1,
    "split.test_share": 0.1,
    "split.seed": 0,
    "resources.preprocess_workers": "all",
}
ABSENT = object()


@pytest.fixture
def write_params(pytestconfig, tmp_path):
    """Return a function that writes `params.yaml` with some values changed, by dotted name."""
    yaml = YAML(typ="safe", pure=True)

    def write(changes=None, path=tmp_path / "params.yaml"):
        content = yaml.load((pytestconfig.rootpath / PARAMS_FILE).read_text(encoding="utf-8"))
        for name, value in {**_FIXED, **(changes or {})}.items():
            *sections, key = name.split(".")
            section = content
            for each in sections:
                section = section[each]
            if value is ABSENT:
                del section[key]
            else:
                section[key] = value
        with path.open("w", encoding="utf-8") as file:
            yaml.dump(content, file)
        return path

    return write


@pytest.fixture(scope="package")
def cpus(pytestconfig):
    """CPUs of an embedded Ray. Starting one takes seconds, so these tests share it."""
    from pipeline import engine

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        # For drivers that connect from another folder: Ray's workers have the path of those who started Ray.
        patch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
        with engine.connect() as found:
            yield found
