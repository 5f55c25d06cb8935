"""Copies of this project in folders of their own, and its commands run there as a person runs them.

Nothing here knows what the commands should do. Everything that a project starts is found again by a mark in its
environment, by the folder that it works in, or by its parents, so that it can be killed, and is gone in the end.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parent.parent
_MARK = "GENERATIVE_MUSIC_TEST"
# What a person's shell, or a git hook, may have set, and would lead a project elsewhere.
_LEADS_ELSEWHERE = ("MAKE", "MFLAGS", "RAY_", "MLFLOW_", "DVC_", "GIT_", "PYTHON", "TF_", "KERAS_", "CUDA_")

# A pipeline that takes seconds where the default one takes minutes.
TINY = {
    "corpus.dir": "data/sample_corpus",
    "corpus.label": r"^(?P<label>[^/]+)/",
    "sample_corpus.instruments": ["marimba", "flute"],
    "sample_corpus.pitches": [48, 52, 55, 60, 64, 67, 72, 76, 79, 84],
    "sample_corpus.velocities": [48, 72, 96, 120],
    "sample_corpus.sample_rate": 8000,
    "sample_corpus.duration_s": 0.25,
    "preprocess.sample_rate": 8000,
    "preprocess.duration_s": 0.25,
    "preprocess.n_fft": 128,
    "preprocess.hop_length": 128,
    "split.group": r"^(?P<group>[^/]+/[^_]+)",
    "autoencoder.conv_filters": [8, 8],
    "autoencoder.conv_kernels": [3, 3],
    "autoencoder.conv_strides": [2, 2],
    "autoencoder.latent_space_dim": 8,
    "train.initialisation": "random",
    "train.learning_rate": 2e-3,
    "train.epochs": 12,
    "train.global_batch_size": 8,
    "train.patience": 1000,
    "evaluate.examples": 3,
    "generate.count": 3,
    "generate.interpolations": 1,
    "generate.interpolation_steps": 3,
    "generate.arithmetic": 1,
    "generate.map_clips": 10,
    "resources.preprocess_workers": 2,
    "resources.train_workers": 2,
    "resources.cpus_per_worker": 1,
}


class Project:
    """A project in a folder, with a Ray of its own.

    Parameters
    ----------
    folder, home : Path
        Of the project, and of the person who works on it; both are there.
    """

    def __init__(self, folder, home):
        self.folder = folder
        self.home = home
        self.mark = uuid.uuid4().hex
        # Short, since Ray puts sockets there, whose paths may have about 100 letters.
        self.ray = Path(tempfile.mkdtemp(prefix="gm", dir="/tmp"))

    # --- contents

    def path(self, name):
        """Return a path in the project."""
        return self.folder / name

    def read(self, name):
        """Return the text of a file."""
        return self.path(name).read_text(encoding="utf-8")

    @property
    def params(self):
        """The sections of `params.yaml`."""
        return YAML(typ="safe", pure=True).load(self.read("params.yaml"))

    def set_params(self, changes):
        """Change some values of `params.yaml`, by dotted name; a name that is not there is added."""
        content = self.params
        for name, value in changes.items():
            *sections, key = name.split(".")
            section = content
            for each in sections:
                section = section[each]
            section[key] = value
        with self.path("params.yaml").open("w", encoding="utf-8") as file:
            YAML(typ="safe", pure=True).dump(content, file)

    def copy(self, folder):
        """Return a copy of the project as it is, in another folder."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder, self.home)

    # --- commands

    @property
    def environment(self):
        """What commands see: this interpreter's programs first, and nothing that leads elsewhere."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_LEADS_ELSEWHERE)}
        git = {f"GIT_{who}_{what}": "test" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        return {
            **kept,
            **git,
            _MARK: self.mark,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "SHELL": "/bin/sh",
            "HOME": str(self.home),
            "GIT_CONFIG_NOSYSTEM": "1",
            "DVC_SITE_CACHE_DIR": str(self.home / "dvc"),
            "RAY_TMPDIR": str(self.ray),
        }

    def start(self, *command, **environment):
        """Start a command in a session of its own, with its output in a file; `wait` returns both."""
        log = self.home / f"{uuid.uuid4().hex}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**self.environment, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Started(self, process, log)

    def run(self, *command, fails=False, timeout=240, **environment):
        """Run a command, and return what it printed; `fails` says how it is expected to end."""
        started = self.start(*command, **environment)
        output = started.wait(timeout)
        failed = started.process.returncode != 0
        assert failed == fails, f"{' '.join(command)} ended with {started.process.returncode}:\n{output}"
        return output

    # --- processes

    def processes(self, name=""):
        """Return the living processes that belong to the project, those whose names start as given, by id."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if self._owns(process) and process.status() != psutil.STATUS_ZOMBIE:
                    for each in (process, *process.children(recursive=True)):
                        if each.name().startswith(name):
                            found[each.pid] = each
        found.pop(os.getpid(), None)
        return [found[pid] for pid in sorted(found)]

    def _owns(self, process):
        folders = [f"{folder}{os.sep}" for folder in (self.folder, self.ray)]
        if f"{process.cwd()}{os.sep}".startswith(tuple(folders)):
            return True
        return process.environ().get(_MARK) == self.mark

    def kill(self):
        """Kill all of the project's processes at once, and return how many there were."""
        killed = 0
        while alive := self.processes():
            for process in alive:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            killed += len(alive)
            psutil.wait_procs(alive, timeout=10)
        return killed

    def close(self):
        """Remove what is outside the project's folder; fail if something is still running."""
        left = psutil.wait_procs(self.processes(), timeout=20)[1]
        described = [f"{process.pid} {' '.join(process.cmdline())[:120]}" for process in left if process.is_running()]
        self.kill()
        shutil.rmtree(self.ray, ignore_errors=True)
        assert not described, f"still running after the tests: {described}"


class Started:
    """A command that runs."""

    def __init__(self, project, process, log):
        self.project = project
        self.process = process
        self._log = log

    @property
    def output(self):
        """What it has printed so far."""
        return self._log.read_text(encoding="utf-8", errors="backslashreplace")

    def wait(self, timeout=240):
        """Wait for its end, and return what it printed."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.project.kill()
            raise AssertionError(f"{self.process.args} still ran after {timeout} s:\n{self.output}") from None
        return self.output

    def wait_until(self, condition, timeout=120, interval=0.02):
        """Wait until a condition returns something true, and return it; the command must not end before."""
        end = time.monotonic() + timeout
        while not (found := condition()):
            assert self.process.poll() is None, f"{self.process.args} ended early:\n{self.output}"
            assert time.monotonic() < end, f"{self.process.args}: waited {timeout} s in vain:\n{self.output}"
            time.sleep(interval)
        return found

    def kill(self):
        """Kill it and everything that it started, Ray's processes included, and return how many there were."""
        killed = self.project.kill()
        self.process.wait(10)
        return killed


def snapshot(folder, home):
    """Return this project's files, uncommitted edits included, as the one commit of a repository in a folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split(b"\0")):
        relative = Path(os.fsdecode(name))
        if (ROOT / relative).is_file() and not _is_made(relative):
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / relative, folder / relative)
    project = Project(folder, home)
    project.run("git", "init", "--quiet")
    commit(project)
    return project


def clone(project, folder, changes=None):
    """Return a clone of a project's last commit, in which tiny parameters are committed.

    Parameters
    ----------
    project : Project
    folder : Path
        Which is made.
    changes : dict
        Of `params.yaml`, by dotted name, beyond `TINY`.
    """
    project.run("git", "clone", "--quiet", str(project.folder), str(folder))
    cloned = Project(folder, project.home)
    # So that `make` does not install an environment: this interpreter's is on the path.
    cloned.path(".venv").mkdir()
    cloned.path(".venv/.installed").touch()
    cloned.set_params({**TINY, **(changes or {})})
    commit(cloned)
    return cloned


def commit(project):
    """Commit everything that git does not ignore."""
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "a commit")


def hashes(folder):
    """Return the SHA-256 of every file below a folder, by relative path."""
    found = {}
    for path in Path(folder).rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _is_made(path):
    """Return whether a run makes a file, so that a fresh clone before its first run lacks it."""
    return path.name == "dvc.lock" or (path.parts[0] == "reports" and path.name != ".gitignore")
