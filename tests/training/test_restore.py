"""What brings a run back: a worktree of its commit, and a look at its corpus."""

import shutil
import subprocess

import pytest

from pipeline.errors import CorpusError, ResourceError
from pipeline.loader import Loader
from pipeline.spectrogram import LogSpectrogramExtractor
from tests.sounds import write_corpus
from training import restore


@pytest.fixture
def git(tmp_path, monkeypatch):
    """Return a function that runs git as somebody; the current folder is a repository with one commit."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.chdir((tmp_path / "project").mkdir() or tmp_path / "project")

    def run(*arguments):
        identity = ["-c", "user.name=test", "-c", "user.email=test"]
        return subprocess.run(["git", *identity, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    run("init", "--quiet")
    (tmp_path / "project/params.yaml").write_text("a: 1\n")
    (tmp_path / "project/code.py").write_text("x = 1\n")
    run("add", ".")
    run("commit", "--quiet", "--message", "x")
    return run


@pytest.fixture
def recorded(tmp_path, git):
    """Return a folder as `origin_of` leaves it."""
    folder = tmp_path / "recorded"
    (folder / "pipeline").mkdir(parents=True)
    (folder / "params.yaml").write_text("a: 3\n")
    (folder / "dvc.lock").write_text("stages: {}\n")
    (tmp_path / "project/code.py").write_text("x = 2\n")
    (folder / "code.patch").write_text(git("diff") + "\n")
    return folder


# --- the worktree


def test_a_worktree_is_what_the_run_had_and_the_project_stays(tmp_path, git, recorded):
    (tmp_path / "project/code.py").write_text("x = 5\n")
    (tmp_path / "project/unsaved.py").write_text("precious\n")
    before = git("status", "--porcelain"), git("diff")
    restore.make_worktree(tmp_path / "w", git("rev-parse", "HEAD"), recorded)

    found = {name: (tmp_path / "w" / name).read_text() for name in ("params.yaml", "code.py", "dvc.lock")}
    assert found == {"params.yaml": "a: 3\n", "code.py": "x = 2\n", "dvc.lock": "stages: {}\n"}
    assert not (tmp_path / "w/unsaved.py").exists()
    assert (git("status", "--porcelain"), git("diff")) == before


def test_a_folder_that_is_there_is_left(tmp_path, git, recorded):
    (tmp_path / "w").mkdir()

    with pytest.raises(ResourceError, match="w: is there already; name another folder, or remove it"):
        restore.make_worktree(tmp_path / "w", git("rev-parse", "HEAD"), recorded)
    assert not list((tmp_path / "w").iterdir())


def test_a_commit_from_elsewhere(tmp_path, recorded):
    with pytest.raises(ResourceError, match=f"commit {'0' * 40} of the run is not in this repository; fetch it first"):
        restore.make_worktree(tmp_path / "w", "0" * 40, recorded)
    assert not (tmp_path / "w").exists()


def test_what_git_refuses_is_one_line(tmp_path, git, recorded):
    (recorded / "code.patch").write_text("no patch\n")

    with pytest.raises(ResourceError, match="git: error: No valid patches in input") as caught:
        restore.make_worktree(tmp_path / "w", git("rev-parse", "HEAD"), recorded)
    assert len(str(caught.value).splitlines()) == 1


# --- the corpus


@pytest.fixture
def heard(tmp_path, rng, make_pipeline):
    """Return a corpus, and what a run recorded of it; one of its files is no audio."""
    corpus = write_corpus(tmp_path / "sounds", rng)
    (corpus / "broken.wav").write_bytes(b"no audio")
    extractor = LogSpectrogramExtractor(64, 64)
    make_pipeline("out", Loader(8000, 0.1), extractor, max_rejected_share=0.5).preprocess(corpus)
    recorded = tmp_path / "recorded"
    (recorded / "data").mkdir(parents=True)
    shutil.copy(tmp_path / "out/min_max_values.parquet", recorded / "data")
    (recorded / "data/rejected.csv").write_text("clip_id,reason,detail\nbroken.wav,not audio,x\n")
    return corpus, recorded


def test_a_corpus_that_is_as_it_was(heard, capsys):
    corpus, recorded = heard
    (corpus / "notes.txt").write_text("no sound")
    restore.check_corpus(corpus, recorded)

    assert capsys.readouterr().out == f"restore: the 6 clips in {corpus} are those of the run\n"


def test_everything_that_differs_is_named(heard):
    corpus, recorded = heard
    (corpus / "speaker0/0.wav").rename(corpus / "speaker0/another name.wav")
    for name in ("speaker1/1.wav", "speaker1/3.wav"):
        content = bytearray((corpus / name).read_bytes())
        content[-1] ^= 1
        (corpus / name).write_bytes(content)

    with pytest.raises(CorpusError) as caught:
        restore.check_corpus(corpus, recorded)
    assert str(caught.value) == (
        f"corpus folder {str(corpus)!r} is not what the run heard: 1 missing: speaker0/0.wav; 2 changed: "
        "speaker1/1.wav, speaker1/3.wav; 1 new: speaker0/another name.wav"
    )


def test_only_the_first_of_many_are_named(heard):
    corpus, recorded = heard
    shutil.rmtree(corpus / "speaker0")
    shutil.rmtree(corpus / "speaker1")
    shutil.copy(corpus / "broken.wav", corpus / "other.wav")

    with pytest.raises(CorpusError, match=r"6 missing: (\S+, ){5}\.\.\.; 1 new: other\.wav$"):
        restore.check_corpus(corpus, recorded)


def test_a_corpus_in_no_version_control_is_linked(tmp_path, git, heard):
    (tmp_path / "w").mkdir()
    heard[0].rename("my sounds")
    restore.link_corpus(tmp_path / "w", restore.Path("my sounds"))

    assert (tmp_path / "w/my sounds").resolve() == (tmp_path / "project/my sounds").resolve()
    restore.check_corpus(tmp_path / "w/my sounds", heard[1])
    with pytest.raises(CorpusError, match="corpus folder 'gone' does not exist, and neither git nor DVC has it"):
        restore.link_corpus(tmp_path / "w", restore.Path("gone"))


# --- what came out


def test_outputs_that_differ_are_named(tmp_path):
    lock = "stages: {{train: {{outs: [{{path: models/a, md5: {}}}, {{path: reports/b, md5: bb}}]}}}}"
    for folder, md5 in (("recorded", "aa"), ("same", "aa"), ("other", "cc")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "dvc.lock").write_text(lock.format(md5))
    (tmp_path / "none").mkdir()

    assert restore.differing_outputs(tmp_path / "same", tmp_path / "recorded") == []
    assert restore.differing_outputs(tmp_path / "other", tmp_path / "recorded") == ["models/a"]
    assert restore.differing_outputs(tmp_path / "none", tmp_path / "recorded") == ["models/a", "reports/b"]
