"""Processes for what must not happen in the one that tests: workers, kills, and command lines.

They are forked from a server that has imported TensorFlow and MLflow and has used neither, which saves each of them
the seconds that this takes.
"""

import itertools
import json
import multiprocessing
import os
import re
import runpy
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.training.preloaded"])
_TIMEOUT_S = 240
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class Finished:
    """What became of a process."""

    returncode: int
    stdout: str
    stderr: str


class Child:
    """A process that runs a function in a folder, with its output in files beside it."""

    def __init__(self, folder, name, function, *arguments, **environment):
        self._stem = Path(folder).parent / f"{Path(folder).name}.{name}.{next(_NUMBERS)}"
        self._process = _CONTEXT.Process(target=_run, args=(folder, self._stem, environment, function, arguments))
        self._process.start()

    def join(self):
        """Wait for the end, and return what became of it."""
        self._process.join(_TIMEOUT_S)
        assert self._process.exitcode is not None, f"{self._stem} still runs after {_TIMEOUT_S} s"
        texts = [Path(f"{self._stem}.{kind}").read_text(encoding="utf-8") for kind in ("out", "err")]
        return Finished(self._process.exitcode, *texts)


def said(finished):
    """Return the lines on standard error, but for those of a TensorFlow for GPUs on a machine without one."""
    return [line for line in finished.stderr.splitlines() if not re.match(r"[IWE]\d{4} .* cu\w+\.cc:", line)]


def python_m(folder, module, *arguments, **environment):
    """Run a module as `python -m` does, in a folder, and return what became of it."""
    return Child(folder, module, _run_module, module, arguments, **environment).join()


def run_workers(folder, function, num_workers, *arguments):
    """Run `function(*arguments, rank, num_workers)` in processes that know of each other, and return their ends."""
    return [child.join() for child in start_workers(folder, function, num_workers, *arguments)]


def start_workers(folder, function, num_workers, *arguments, **environment):
    """Start what `run_workers` runs, and return the processes."""
    ports = _free_ports(num_workers)
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    children = []
    for rank in range(num_workers):
        task = {"type": "worker", "index": rank}
        joined = {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})} if num_workers > 1 else {}
        name = f"{rank}-of-{num_workers}"
        children.append(Child(folder, name, function, *arguments, rank, num_workers, **joined, **environment))
    return children


def _free_ports(number):
    """Return ports on which nobody listens."""
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _run(folder, stem, environment, function, arguments):
    """Be the process."""
    os.chdir(folder)
    for kind, stream in (("out", sys.stdout), ("err", sys.stderr)):
        stream.flush()
        with Path(f"{stem}.{kind}").open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    function(*arguments)


def _run_module(module, arguments):
    sys.argv[:] = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
