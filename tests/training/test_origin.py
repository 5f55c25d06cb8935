"""What a run says of where it came from, and how that is found again: git, DVC's locks, MLflow."""

import json
import os
import subprocess

import pytest

from pipeline.errors import ResourceError
from pipeline.paths import REJECTED
from training import provenance, tracking, tracking_origin

pytestmark = pytest.mark.usefixtures("nowhere_else")

LOCK = "stages: {preprocess: {deps: [{path: 'my sounds #1', md5: aa.dir}], outs: [{path: data/x, md5: bb.dir}]}}"


@pytest.fixture
def git(monkeypatch):
    """Return a function that runs git as somebody, in the current folder."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    for who in ("AUTHOR", "COMMITTER"):
        for what in ("NAME", "EMAIL"):
            monkeypatch.setenv(f"GIT_{who}_{what}", "test")

    def run(*arguments):
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.strip()

    return run


@pytest.fixture
def repository(git, tmp_path):
    """Return the current folder as a repository with one commit."""
    for name, content in {"params.yaml": "a: 1\n", "dvc.lock": LOCK, "code.py": "x = 1\r\n", "gone.py": "1\n"}.items():
        (tmp_path / name).write_bytes(content.encode())
    (tmp_path / "picture.png").write_bytes(bytes(range(256)))
    git("init", "--quiet")
    (tmp_path / ".git/info/exclude").write_text("/project\n")  # another fixture's
    git("add", ".")
    git("commit", "--quiet", "--message", "x")
    return tmp_path


@pytest.fixture
def run_of(client, key, params):
    """Return a function that makes a run of a training, and returns it as it is then."""

    def make(name=key):
        with tracking.training_run(client, name, params) as run:
            pass
        return client.get_run(run.info.run_id)

    return make


# --- what differs from the commit


def test_a_patch_holds_everything_that_is_not_committed(repository, git, tmp_path_factory):
    (repository / "params.yaml").write_text("a: 2\n")
    (repository / "code.py").write_bytes(b"x = 2\r\ny = '\xc3\xa9'\r\n")
    (repository / "picture.png").write_bytes(bytes(range(255, -1, -1)))
    (repository / "gone.py").unlink()
    (repository / "staged.py").write_text("staged\n")
    git("add", "staged.py")
    (repository / "new file.py").write_text("new\n")
    before = git("status", "--porcelain")
    (repository / "dvc.lock").write_text("made: by a run")
    (repository / "sound.wav").write_text("no code")
    patch = provenance.uncommitted()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    git("worktree", "add", "--quiet", "--detach", str(elsewhere / "w"), "HEAD")
    (elsewhere / "patch").write_bytes(patch.encode("utf-8", "surrogateescape"))
    git("-C", str(elsewhere / "w"), "apply", str(elsewhere / "patch"))

    for name in ("params.yaml", "code.py", "picture.png", "staged.py", "new file.py"):
        assert (elsewhere / "w" / name).read_bytes() == (repository / name).read_bytes(), name
    assert not (elsewhere / "w/gone.py").exists()
    assert (elsewhere / "w/dvc.lock").read_text() == LOCK
    assert "sound.wav" not in patch
    # The person's index is as it was.
    (repository / "dvc.lock").write_text(LOCK)
    (repository / "sound.wav").unlink()
    assert git("status", "--porcelain") == before


def test_what_a_run_makes_is_no_change(repository):
    (repository / "dvc.lock").write_text("made: by a run")
    (repository / "reports").mkdir()
    (repository / "reports/metrics.yaml").write_text("also: made")

    assert provenance.uncommitted() == ""
    assert provenance.commit_tags()["git_dirty"] == "false"


# --- what a run says


def test_a_change_of_the_second_in_which_git_looked(repository, git):
    path, second = repository / "params.yaml", (1_700_000_000, 1_700_000_000)
    git("config", "core.trustctime", "false")
    os.utime(path, second)
    git("update-index", "--refresh")
    path.write_text("a: 2\n")
    for each in (path, repository / ".git" / "index"):
        os.utime(each, second)

    assert "+a: 2\n" in provenance.uncommitted()


def test_tags_and_files(client, repository, git, run_of, key):
    clean = run_of()
    (repository / "params.yaml").write_text("a: 2\n")
    dirty = run_of(f"{key}, later")

    assert clean.data.tags["training_key"] == key
    assert clean.data.tags["git_commit"] == git("rev-parse", "HEAD")
    assert (clean.data.tags["git_dirty"], dirty.data.tags["git_dirty"]) == ("false", "true")
    assert (clean.data.tags["dvc.my sounds _1"], clean.data.tags["dvc.data/x"]) == ("aa.dir", "bb.dir")
    files = {item.path for item in client.list_artifacts(clean.info.run_id)}
    assert files == {"dvc.lock", "params.yaml", "packages.txt"}
    assert {item.path for item in client.list_artifacts(dirty.info.run_id)} == files | {"code.patch"}


def test_versions(client, run_of, tmp_path):
    run = run_of()
    client.download_artifacts(run.info.run_id, "packages.txt", str(tmp_path))
    lines = (tmp_path / "packages.txt").read_text(encoding="utf-8").splitlines()

    for name in ("ray", "keras", "mlflow", "librosa"):
        assert f"{name}=={run.data.tags[f'version.{name}']}" in lines
    assert run.data.tags["version.tensorflow"].split(".")[0] == "2"


def test_outside_of_a_repository(run_of, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", "/")

    assert "git_commit" not in run_of().data.tags


def test_the_data_are_datasets_of_the_run(client, run_of, store, tmp_path):
    (tmp_path / "dvc.lock").write_text("stages: {preprocess: {deps: [{path: sounds, md5: 0123456789abcdef.dir}]}}")
    (tmp_path / REJECTED).parent.mkdir(parents=True)
    (tmp_path / REJECTED).write_text("clip_id,reason,detail\n")
    run = run_of()
    for _ in range(2):
        tracking_origin.log_data(client, run.info.run_id, "sounds", store)
    found = {each.dataset.name: each.dataset for each in client.get_run(run.info.run_id).inputs.dataset_inputs}

    assert len(client.get_run(run.info.run_id).inputs.dataset_inputs) == 2
    assert found["spectrograms"].digest == store.digest[:32]
    assert json.loads(found["spectrograms"].source) == {"uri": str(store.folder)}
    assert json.loads(found["spectrograms"].profile)["train"] == store.table["split"].to_pylist().count("train")
    assert found["corpus"].digest == "0123456789abcdef.dir"
    files = {item.path for item in client.list_artifacts(run.info.run_id, "data")}
    assert files == {"data/min_max_values.parquet", "data/rejected.csv"}


# --- experiments and runs


def test_experiments_of_one_training_share_its_run(client, params, key, monkeypatch, run_of):
    monkeypatch.setenv("DVC_EXP_NAME", f"wise-owl-{key}")
    run = run_of()
    for name in (f"wise-{key}", f"wise-owl-{key}"):
        monkeypatch.setenv("DVC_EXP_NAME", name)
        with tracking.same_run(client, key, None, params):
            pass
    monkeypatch.delenv("DVC_EXP_NAME")
    with tracking.same_run(client, key, None, params):
        pass

    found = client.get_run(run.info.run_id)
    assert found.data.tags["dvc_experiment"] == f"wise-owl-{key} wise-{key}"
    assert found.info.run_name == f"wise-owl-{key}"
    for name in (f"wise-{key}", f"wise-owl-{key}", run.info.run_id):
        assert tracking_origin.find_run(client, name).info.run_id == run.info.run_id
    with pytest.raises(ResourceError, match="'owl' is neither the id of an MLflow run nor the name of a tracked"):
        tracking_origin.find_run(client, "owl")


def test_a_run_that_recorded_too_little(client, repository, run_of, tmp_path):
    run = run_of()

    with pytest.raises(ResourceError, match=r"did not record data/min_max_values\.parquet, data/rejected\.csv"):
        tracking_origin.origin_of(client, run.info.run_id, tmp_path)
