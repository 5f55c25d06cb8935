"""A person's own folder of sounds: what is made of it, that it is left alone, and what is said when it cannot be used.

DVC reads the folder before any stage of ours runs, and what it says where it cannot is pinned down here too: should
another version say it better, `training/preflight.py` may go.
"""

import os

import numpy as np
import pytest

from pipeline.store import Store
from tests.integration.outcomes import STAGES, ran, runs_of, tracking
from tests.projects import hashes
from tests.sounds import write

pytestmark = pytest.mark.timeout(600)

FOLDERS = ["two words", "a # and & 100% {x}", "übung/日本", "plain"]


def write_sounds(folder, number=10):
    """Write sounds with names as people give them, the same ones in each of several folders."""
    rng = np.random.default_rng(5)
    for name in FOLDERS:
        for index in range(number):
            write(folder / name / f"take #{index} & café.wav", rng.uniform(-0.5, 0.5, 2000))
    (folder / "notes, by hand.txt").write_text("not a sound", encoding="utf-8")
    return folder


def state(folder):
    """Return all that is in a folder: bytes, permissions and times."""
    return hashes(folder), {path: (path.lstat().st_mode, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def own(tmp_path_factory, projects):
    """A project after a run on a folder outside of it, up to the evaluation and with one worker."""
    place = tmp_path_factory.mktemp("own corpus")
    sounds = write_sounds(place / "my sounds & more #1 für 日本")
    changes = {"corpus.dir": str(sounds), "split.group": None, "resources.train_workers": 1, "train.epochs": 2}
    project = projects.new("own", changes)
    project.sounds = sounds
    project.before = state(sounds)
    project.output = project.run("make", "repro", timeout=500)
    return project


# --- a folder outside the project


def test_the_sample_corpus_is_not_made(own):
    assert ran(own.output) == STAGES[1:]
    assert not own.path("data/sample_corpus").exists()
    # Of the stages that this corpus has a use for; that of the sample corpus was never run.
    assert "up to date" in own.run("dvc", "status", *STAGES[1:])


def test_the_folder_is_left_as_it_was(own):
    assert state(own.sounds) == own.before


def test_every_sound_is_a_row_under_its_own_name(own):
    table = Store(own.path("data/spectrograms"), own.path("data/min_max_values.parquet")).table

    assert sorted(table["clip_id"].to_pylist()) == sorted(
        f"{folder}/take #{index} & café.wav" for folder in FOLDERS for index in range(10)
    )
    assert set(table["label"].to_pylist()) == {folder.split("/")[0] for folder in FOLDERS}


def test_mlflow_keeps_such_names(own):
    (run,) = runs_of(own)
    files = [item.path for item in tracking(own).list_artifacts(run.info.run_id, "evaluate")]

    assert len(files) == 3 + 2 * own.params["evaluate"]["examples"]
    (tag,) = [name for name in run.data.tags if name.startswith("dvc.") and "my sounds" in name]
    assert f"md5: {run.data.tags[tag]}\n" in own.read("dvc.lock")
    assert run.data.params["corpus.dir"] == str(own.sounds)


def test_a_changed_sound_is_seen(own, projects):
    project = projects.copy(own, "changed")
    write(own.sounds / "plain" / "one more.wav", np.zeros(2000))
    try:
        output = project.run("dvc", "status", "preprocess")
    finally:
        (own.sounds / "plain" / "one more.wav").unlink()

    assert "changed deps" in output
    assert str(own.sounds) in output


# --- a folder that cannot be used


@pytest.fixture(scope="module")
def project(projects):
    """A project that has never run."""
    return projects.new("bad")


def refusal(project, folder):
    """Return the line with which `make repro` refuses a corpus, and check that DVC is not even asked."""
    project.set_params({"corpus.dir": None if folder is None else str(folder)})
    output = project.run("make", "repro", fails=True)
    line, after = output.splitlines()
    assert after.startswith("make: ***")
    return line


def test_a_missing_folder(project, tmp_path):
    missing = tmp_path / "nowhere"

    assert refusal(project, missing) == f"error: corpus folder '{missing}' does not exist"
    # DVC, on its own, says as much.
    output = project.run("dvc", "repro", fails=True)
    assert f"failed to reproduce 'preprocess': [Errno 2] No such file or directory: '{missing}'" in output


def test_no_folder(project):
    expected = "error: params.yaml: corpus.dir='' should have at least 1 character"
    assert refusal(project, "") == expected
    # DVC, on its own, ends in "unexpected error" and no more.
    assert "ERROR: unexpected error\n" in project.run("dvc", "repro", fails=True)
    assert refusal(project, None) == "error: params.yaml: corpus.dir=None should be a valid string"


def test_a_home_folder_by_its_sign(project):
    assert refusal(project, "~/sounds") == (
        "error: params.yaml: corpus: dir='~/sounds' must be written in full, since ~ is expanded by shells only"
    )


def test_a_file_for_a_folder(project):
    assert refusal(project, "params.yaml") == "error: corpus folder 'params.yaml' is not a folder"


def test_a_folder_without_sounds(project, tmp_path):
    assert refusal(project, tmp_path) == f"error: corpus folder '{tmp_path}' holds no audio file"


@pytest.mark.parametrize("folder", [".", "..", "data"])
def test_a_folder_that_holds_what_is_made_from_it(project, folder):
    sound = write(project.path("data/sounds/a.wav"), np.zeros(2000))
    try:
        assert refusal(project, folder) == (
            f"error: corpus folder '{folder}' holds data/spectrograms, which is made from it; choose another"
        )
    finally:
        sound.unlink()
        sound.parent.rmdir()


def add_bytes_that_are_not_utf8(folder):
    (folder / "a.wav").rename(folder / os.fsdecode(b"caf\xe9.wav"))


def add_a_loop(folder):
    (folder / "loop.wav").symlink_to("loop.wav")


def add_a_broken_link(folder):
    (folder / "gone.wav").symlink_to("nowhere.wav")


def add_a_pipe(folder):
    os.mkfifo(folder / "pipe.txt")


@pytest.mark.parametrize(
    ("add", "found", "from_dvc"),
    [
        (add_bytes_that_are_not_utf8, r"'caf\xe9.wav': its name is not UTF-8", "surrogates not allowed"),
        (
            add_a_loop,
            "'loop.wav': it is a link that leads nowhere: Too many levels of symbolic links",
            "unexpected error - [Errno 40] Too many levels of symbolic links",
        ),
        (
            add_a_broken_link,
            "'gone.wav': it is a link that leads nowhere: No such file or directory",
            "unexpected error - [Errno 2] No such file or directory",
        ),
        # DVC, on its own, waits for ever for something to come out of it.
        (add_a_pipe, "'pipe.txt': it is neither a file nor a folder", None),
    ],
    ids=["bytes that are not UTF-8", "a loop", "a broken link", "a pipe"],
)
def test_what_dvc_cannot_read(project, tmp_path, add, found, from_dvc):
    write(tmp_path / "sounds" / "a.wav", np.zeros(2000))
    write(tmp_path / "sounds" / "b.wav", np.zeros(2000))
    add(tmp_path / "sounds")

    assert refusal(project, tmp_path / "sounds") == (
        f"error: corpus folder '{tmp_path / 'sounds'}' holds 1 entries that DVC cannot version; the first is {found}; "
        "rename or remove it"
    )
    if from_dvc:
        assert from_dvc in project.run("dvc", "status", "preprocess", fails=True)


def test_links_to_folders_are_followed_and_said(project, tmp_path):
    write(tmp_path / "elsewhere" / "b.wav", np.zeros(2000))
    write(tmp_path / "sounds" / "a.wav", np.zeros(2000))
    (tmp_path / "sounds" / "back").symlink_to(".")
    (tmp_path / "sounds" / "more").symlink_to(tmp_path / "elsewhere")
    project.set_params({"corpus.dir": str(tmp_path / "sounds"), "preprocess.max_rejected_share": 0.5})
    warning = project.run("python", "-m", "training.preflight")
    output = project.run("dvc", "repro", "preprocess")

    assert warning == (
        f"preflight: 2 links to folders in corpus folder '{tmp_path / 'sounds'}', the first 'back': their sounds are "
        "used, and DVC does not see when they change; `dvc repro --force preprocess` then\n"
    )
    assert "rejected: back: loop: a link leads back to a folder that it lies in" in output
    assert "preprocess: 2 clips, 2 rows" in output
    # As it says: DVC does not look behind the link.
    write(tmp_path / "elsewhere" / "c.wav", np.zeros(2000))
    assert "up to date" in project.run("dvc", "status", "preprocess")
