"""The core of `pipeline` works where the other tiers are absent: a child interpreter cannot import them."""

import json
import subprocess
import sys

import numpy as np

from pipeline.store import Store
from tests.containers import write_container
from tests.sounds import digest, sine, write, write_corpus

# What `[project]` in pyproject.toml does not depend on, and scikit-learn, which comes with librosa but costs a second.
ABSENT = [
    "ray",
    "tensorflow",
    "keras",
    "mlflow",
    "dvc",
    "matplotlib",
    "sklearn",
    "pyloudnorm",
    "av",
    "pretty_midi",
    "midirenderer",
]
CORE = [
    "artifact",
    "bucket",
    "child",
    "clips",
    "columns",
    "command",
    "containers",
    "corpus",
    "decoder",
    "errors",
    "inversion",
    "griffin_lim",
    "isolation",
    "levels",
    "loader",
    "narrowing",
    "normaliser",
    "packages",
    "padder",
    "params",
    "parts",
    "planner",
    "preprocessing",
    "recording",
    "references",
    "resampler",
    "room",
    "units",
    "reuse",
    "shards",
    "signatures",
    "silence",
    "spectrogram",
    "storage",
    "store",
    "submission",
    "summary",
    "units",
    "versions",
]

PRELUDE = f"""
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}: absent in this tier", name=name)

sys.meta_path.insert(0, Absent())
"""

IMPORT_CORE = f"""
import importlib, json

for name in {CORE!r}:
    importlib.import_module(f"pipeline.{{name}}")
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}} & set({ABSENT!r}))))
"""

PREPROCESS = """
import json
from pipeline.loader import Loader
from pipeline.normaliser import MinMaxNormaliser
from pipeline.padder import Padder
from pipeline.preprocessing import PreprocessingPipeline
from pipeline.spectrogram import LogSpectrogramExtractor
from pipeline.store import Saver, Store

folder, out = sys.argv[1:]
extractor, normaliser = LogSpectrogramExtractor(512, 256), MinMaxNormaliser(0, 1)
saver = Saver(f"{out}/spectrograms", f"{out}/min_max_values.parquet")
pipeline = PreprocessingPipeline(Loader(22050, 0.74), Padder(), extractor, normaliser, saver)
report = pipeline.preprocess(folder)
reused = pipeline.preprocess(folder).counts["reused"]
store = Store(saver.folder, saver.table_path)
store.verify()
line = store.table.to_pylist()[0]
S_db = normaliser.denormalise(store.rows([0])[0], line["min_db"], line["max_db"])
y = extractor.invert(S_db, pipeline.loader.n_samples)
found = {"counts": report.counts, "first": line["clip_id"], "n_samples": len(y), "peak": float(abs(y).max())}
print(json.dumps({**found, "reused": reused, "pandas": "pandas" in sys.modules}))
"""


def run(program, *arguments, cwd):
    """Run a program in a child interpreter without the other tiers, and return what it printed as JSON."""
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + program, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def test_what_is_absent_cannot_be_imported(pytestconfig):
    program = """
import json
try:
    import ray
except ModuleNotFoundError as error:
    print(json.dumps(str(error)))
"""
    assert run(program, cwd=pytestconfig.rootpath) == "No module named 'ray': absent in this tier"


def test_the_core_imports(pytestconfig):
    assert run(IMPORT_CORE, cwd=pytestconfig.rootpath) == []


def test_the_core_says_what_a_container_wants(pytestconfig, tmp_path):
    program = """
import json
from pipeline.errors import AudioError
from pipeline.loader import Loader

try:
    Loader().load(sys.argv[1])
except AudioError as error:
    print(json.dumps([error.reason, error.detail]))
"""
    path = write_container(tmp_path / "a.m4a", sine(3000.0, 44_100, 44_100), 44_100, "aac", "ipod")

    assert run(program, path, cwd=pytestconfig.rootpath) == [
        "unread format",
        "MP4 or QuickTime: wants the package av; pip install 'generative-music[av]'",
    ]


def test_the_core_preprocesses_real_files_and_comes_back(pytestconfig, tmp_path, rng, make_pipeline):
    folder = write_corpus(tmp_path / "corpus", rng, 5)
    write(folder / "a sine.flac", sine(3000.0, 44_100, 44_100), 44_100)
    found = run(PREPROCESS, folder, tmp_path / "child", cwd=pytestconfig.rootpath)

    assert found["counts"]["rows"] == 6
    assert (found["first"], found["n_samples"]) == ("a sine.flac", 16317)
    assert 0.1 < found["peak"] < 2.0
    assert found["reused"] == 6
    # Which is installed, and which Arrow imports wherever it sees a chance.
    assert not found["pandas"]
    # As with everything installed.
    make_pipeline("parent").preprocess(folder)
    assert digest(tmp_path / "child") == digest(tmp_path / "parent")
    store = Store(tmp_path / "child" / "spectrograms", tmp_path / "child" / "min_max_values.parquet")
    assert np.isfinite(store.rows(np.arange(6))).all()
