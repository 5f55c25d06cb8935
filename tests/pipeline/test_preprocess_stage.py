"""The stage from the command line, as `dvc repro` runs it: in a child process, in a project's folder."""

import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from pipeline.corpus import list_clips
from pipeline.errors import ResourceError, StoreError
from pipeline.loader import Loader
from pipeline.params import PipelineParams, read_params
from pipeline.paths import REPORTS, SPECTROGRAMS, TABLE
from pipeline.stages import preprocess
from pipeline.store import Store
from tests.pipeline.conftest import ABSENT
from tests.sounds import cut, digest, sine, write, write_corpus


@pytest.fixture
def stage(pytestconfig, tmp_path):
    """Return a function that runs the stage in `tmp_path`, which is the project's folder."""

    def run(*arguments, **environment):
        inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        return subprocess.run(
            [sys.executable, "-m", "pipeline.stages.preprocess", *arguments],
            cwd=tmp_path,
            env={**inherited, "PYTHONPATH": str(pytestconfig.rootpath), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


@pytest.fixture
def stage_on_cluster(stage, cpus):
    """Return a function that runs the stage on the Ray that these tests share, which is a cluster to it."""
    import ray

    address = ray.get_runtime_context().gcs_address
    return lambda *arguments: stage(*arguments, RAY_ADDRESS=address)


def error_of(finished):
    """Return the line with which a run ended, and check that there is no more to read than that."""
    assert finished.returncode == 1, finished.stderr
    assert "Traceback" not in finished.stdout + finished.stderr
    (line,) = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert finished.stderr.splitlines()[-1] == line
    return line


def only_error_of(finished):
    """Return the one line of a run that ended before Ray, which warns of things of its own, was started."""
    line = error_of(finished)
    assert finished.stderr == line + "\n"
    return line


def made(folder):
    """Return digests of what a run made, by path, and of all of `data/`."""
    files = [path for path in (folder / "data").rglob("*") if path.is_file()]
    return sorted(path.name for path in files), digest(folder / "data")


def read_report(folder):
    """Return the summary, and clip id and reason of what was rejected."""
    summary = json.loads((folder / REPORTS / "preprocess" / "summary.json").read_text())
    with (folder / REPORTS / "preprocess" / "rejected.csv").open(newline="") as file:
        return summary, [(line["clip_id"], line["reason"]) for line in csv.DictReader(file)]


# --- good paths


def test_a_folder_of_all_kinds(tmp_path, rng, monkeypatch, write_params, stage, stage_on_cluster):
    sounds = write_corpus(tmp_path / "sounds", rng, 20)
    for name in ("a/x.wav", "b/x.wav", "two words & a #.wav", "日本.wav", b"caf\xe9.wav"):
        write(sounds / os.fsdecode(name), rng.uniform(-0.5, 0.5, 4000))
    write(sounds / "silent.wav", np.zeros(4000))
    write(sounds / "eight.wav", rng.uniform(-0.5, 0.5, (9000, 8)))
    write(sounds / "slow.wav", sine(100.0, 5000, 5000), 5000)
    write(sounds / "fast.flac", sine(100.0, 192_000, 192_000), 192_000)
    (sounds / ".DS_Store").touch()
    (sounds / "labels.csv").write_text("a,b\n")
    (sounds / "loop").symlink_to(".")
    write_params({"preprocess.max_rejected_share": 0.05})
    finished = stage()

    assert finished.returncode == 0, finished.stderr
    assert "preprocess: 29 clips, 2 MiB of spectrograms" in finished.stdout
    assert "rejected: loop: loop: a link leads back to a folder that it lies in" in finished.stdout
    assert "error" not in finished.stderr
    summary, rejected = read_report(tmp_path)
    assert rejected == [("loop", "loop")]
    assert {name: summary[name] for name in ("clips", "rows", "ignored", "rejected", "silent", "folded")} == {
        "clips": 29,
        "rows": 29,
        "ignored": 2,
        "rejected": 1,
        "silent": 1,
        "folded": 1,
    }
    assert (tmp_path / REPORTS / "preprocess" / "corpus.png").read_bytes().startswith(b"\x89PNG")
    assert summary["train"] + summary["validation"] + summary["test"] == 29
    Store(tmp_path / SPECTROGRAMS, tmp_path / TABLE).verify()
    embedded = made(tmp_path)

    # The same bytes from a cluster, on one worker, and serially.
    write_params({"resources.preprocess_workers": 1})
    again = stage_on_cluster()
    assert again.returncode == 0, again.stderr
    assert made(tmp_path) == embedded
    monkeypatch.chdir(tmp_path)
    preprocess.build(read_params(PipelineParams, tmp_path / "params.yaml")).preprocess("sounds")
    assert made(tmp_path) == embedded


def test_other_parameters_from_another_file(tmp_path, rng, write_params, stage_on_cluster):
    write_corpus(tmp_path / "elsewhere" / "my sounds", rng, 4)
    path = write_params(
        {
            "corpus.dir": str(tmp_path / "elsewhere" / "my sounds"),
            "preprocess.duration_s": 0.5,
            "preprocess.sample_rate": 8000,
            "preprocess.n_fft": 256,
            "preprocess.hop_length": 128,
            "preprocess.drop_nyquist": False,
            "preprocess.range": [-1.0, 1.0],
            "split.group": r"^(?P<group>[^/]+)/",
        },
        tmp_path / "other params.yaml",
    )
    finished = stage_on_cluster("--params", str(path))

    assert finished.returncode == 0, finished.stderr
    store = Store(tmp_path / SPECTROGRAMS, tmp_path / TABLE)
    assert store.format.shape == (129, 1 + Loader(8000, 0.5).n_samples // 128)
    assert store.rows(np.arange(4)).min() == -1
    assert store.table["label"].to_pylist() == store.table["group"].to_pylist()
    assert set(store.table["label"].to_pylist()) == {"speaker0", "speaker1"}


def test_segments_of_whole_recordings(tmp_path, rng, write_params, stage_on_cluster):
    write(tmp_path / "sounds" / "long.wav", rng.uniform(-0.5, 0.5, 44_100 * 5), 44_100)
    write(tmp_path / "sounds" / "short.wav", rng.uniform(-0.5, 0.5, 4000))
    write_params({"preprocess.segment": "all", "preprocess.overlap": 0.5})
    first, second = stage_on_cluster(), stage_on_cluster()

    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    # 5 s are 110,250 samples at 22,050 Hz, of which segments begin every 16,317 - 8,158.
    n_segments = 1 + 1 + -(-(110_250 - 16_317) // 8159)
    assert "preprocess: 2 clips, 1 MiB of spectrograms" in first.stdout
    assert f"2 clips, {n_segments} rows, {n_segments} segments, 2 padded, 2 resampled, 2 computed" in first.stdout
    assert "2 reused" in second.stdout


def test_every_parameter_reaches_what_describes_the_rows(tmp_path, write_params):
    # None as the parts have it by default.
    wanted = {
        "sample_rate": 16_000,
        "duration_s": 0.5,
        "mono": False,
        "fold": "left",
        "resampling": "MQ",
        "trim_db": 35.0,
        "min_level_db": -60.0,
        "level": "peak",
        "level_db": -3.0,
        "segment": "all",
        "overlap": 0.5,
        "n_fft": 256,
        "hop_length": 128,
        "drop_nyquist": False,
        "ref": 0.5,
        "amin": 1e-4,
        "top_db": 60.0,
        "range": [-1.0, 1.0],
        "dtype": "float16",
    }
    path = write_params({f"preprocess.{name}": value for name, value in wanted.items()})
    params = read_params(PipelineParams, path)
    parameters = preprocess.build(params).parameters

    assert {name: parameters[name] for name in wanted} == wanted
    assert set(parameters) - set(wanted) == {"pad_mode"}
    assert set(type(params.preprocess).model_fields) - set(wanted) == {"max_rejected_share"}


# --- bad corpora


def test_more_rejected_than_allowed(tmp_path, rng, monkeypatch, write_params, stage_on_cluster):
    sounds = write_corpus(tmp_path / "sounds", rng, 6)
    path = write_params()
    monkeypatch.chdir(tmp_path)
    preprocess.build(read_params(PipelineParams, path)).preprocess(sounds)
    Store(SPECTROGRAMS, TABLE).verify()
    (sounds / "text.wav").write_text("this is not a sound")
    cut(write(sounds / "cut.flac", rng.uniform(-0.5, 0.5, 5000)))
    write(sounds / "no samples.wav", np.zeros(0))
    write(sounds / "nan.wav", np.full(9, np.nan), subtype="FLOAT")
    os.mkfifo(sounds / "x.wav")
    line = error_of(stage_on_cluster())

    assert "5 of 11 recordings cannot be used" in line
    assert "preprocess.max_rejected_share=0.05 allows 5%" in line
    assert "'cut.flac'" in line
    with pytest.raises(StoreError, match="has not finished here"):
        Store(SPECTROGRAMS, TABLE)
    summary, rejected = read_report(tmp_path)
    assert summary == {"rejected": 5}
    assert dict(rejected).keys() == {"cut.flac", "nan.wav", "no samples.wav", "text.wav", "x.wav"}


def test_more_workers_than_ray_reaches(tmp_path, rng, write_params, stage_on_cluster, cpus):
    write_corpus(tmp_path / "sounds", rng, 2)
    write_params({"resources.preprocess_workers": cpus + 1})
    line = error_of(stage_on_cluster())

    assert line == (
        f"error: resources.preprocess_workers={cpus + 1} of 1 CPU each is more than Ray reaches: {cpus} CPUs"
    )


def test_a_missing_folder(write_params, stage):
    write_params()

    assert only_error_of(stage()) == "error: corpus folder 'sounds' does not exist"


def test_a_folder_without_audio(tmp_path, write_params, stage):
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "labels.csv").touch()
    write_params()

    assert only_error_of(stage()) == ("error: corpus folder 'sounds' holds no audio file (1 other files were ignored)")


def test_a_corpus_that_does_not_fit_the_disk(tmp_path, monkeypatch, write_params):
    monkeypatch.chdir(tmp_path)
    path = write_params({"preprocess.duration_s": 3e9})  # a century
    corpus = list_clips(write_corpus(tmp_path / "sounds", np.random.default_rng(0), 3))
    n_mib = 3 * 4 * 256 * (1 + 3 * 10**9 * 22050 // 256) // 2**20

    with pytest.raises(
        ResourceError, match=f"^{tmp_path}/data/spectrograms needs {n_mib:,} MiB for 3 clips, and [0-9,]+ MiB are free$"
    ):
        preprocess.check_disk(preprocess.build(read_params(PipelineParams, path)), corpus, 3)


# --- bad parameters


def test_bad_parameters(write_params, stage):
    write_params({"preprocess.hop_length": 1024, "split.sede": 1, "split.seed": ABSENT})
    line = only_error_of(stage())

    assert line.startswith("error: params.yaml: preprocess: hop_length=1024 must be at most n_fft=512")
    assert "; split.seed is missing; split.sede is unknown (did you mean seed?)" in line


def test_the_traceback_is_for_verbose(stage):
    finished = stage("--verbose", "--params", "nowhere.yaml")

    assert finished.returncode == 1
    assert "Traceback" in finished.stderr
    assert finished.stderr.splitlines()[-1].endswith(
        "ParameterError: nowhere.yaml: cannot be read: No such file or directory"
    )
