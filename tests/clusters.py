"""Clusters of Ray nodes as people start them: `ray start` in processes of their own, on free ports, with a token.

Every node is ended by the id of its process, and whatever it has started ends with it.
"""

import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import psutil

_STARTS_WITHIN_S = 240
_TRIES = 4
_LEADS_ELSEWHERE = ("RAY_", "MLFLOW_", "DVC_", "PYTHON", "GENERATIVE_MUSIC_")
# What Ray calls processes while they work.
PREPROCESSES, TRAINS = "ray::_apply", "ray::RayTrainWorker"


def free_ports(number):
    """Return ports that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]


def write_token(home):
    """Give a person a token of their own, and return it."""
    token = secrets.token_hex(32)
    path = Path(home, ".ray", "auth_token")
    path.parent.mkdir(parents=True)
    path.write_text(token, encoding="utf-8")
    return token


class Cluster:
    """A head, and the nodes that are added to it.

    Parameters
    ----------
    home : Path
        Of the person who starts it, with a token.
    python : path-like, optional
        Of the head's environment.
    cpus : int
        Of the head.
    has_jobs : bool
        Whether jobs can be submitted to it.
    host : str
        Its address.
    environment : dict, optional
        What work on the head finds in its environment.
    """

    def __init__(self, home, python=sys.executable, cpus=2, has_jobs=True, host="127.0.0.1", environment=None):
        self.home = home
        # Short, since Ray puts sockets there, whose paths may have about 100 letters.
        self.folder = Path(tempfile.mkdtemp(prefix="gm", dir="/tmp"))
        self._nodes = []
        self.port, dashboard, client = free_ports(3)
        self.jobs = f"http://127.0.0.1:{dashboard}"
        self.address = f"{host}:{self.port}"
        ports = ("--port", self.port, "--dashboard-port", dashboard, "--ray-client-server-port", client)
        options = ("--include-dashboard", has_jobs, "--dashboard-host", "127.0.0.1", "--temp-dir", self.folder / "ray")
        # Of several nodes on one machine, Ray's own choice is one address.
        own = () if host == "127.0.0.1" else ("--node-ip-address", host)
        try:
            self._start([python], "--head", *ports, *options, *own, cpus=cpus, environment=environment)
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def node(self, python=sys.executable, environment=None):
        """Add a node for the length of a `with` block."""
        self._start([python], "--address", self.address, cpus=1, environment=environment)
        yield
        self._end(self._nodes.pop())

    @contextlib.contextmanager
    def node_elsewhere(self, python, environment, host):
        """Add a node with an address of its own for the length of a `with` block; yields the id of its process.

        Parameters
        ----------
        python : list of str
            The command that runs Python there.
        environment : dict
            What that command needs.
        host : str
        """
        self._start(python, "--address", self.address, "--node-ip-address", host, cpus=1, environment=environment)
        yield self._nodes[-1].pid
        self._end(self._nodes.pop())

    @contextlib.contextmanager
    def mortal_node(self):
        """Add a node that may die before the `with` block ends; yields its raylet."""
        self._start([sys.executable], "--address", self.address, cpus=1)
        process = self._nodes[-1]
        family = psutil.Process(process.pid).children(recursive=True)
        (raylet,) = (each for each in family if each.name() == "raylet")
        try:
            yield raylet
        finally:
            self._nodes.remove(process)
            if process.poll() is None:
                self._end(process)
            _end_all(family)

    def workers(self, kind=PREPROCESSES):
        """Return the processes of all nodes that do work of a kind now."""
        return [worker for node in self._nodes for worker in workers_of(node.pid, kind)]

    def job_drivers(self):
        """Return the processes on all nodes that jobs have started for stages."""
        found = (each for node in self._nodes for each in psutil.Process(node.pid).children(recursive=True))
        return [each for each in found if "pipeline.submission" in _command_line(each)]

    def _start(self, python, *arguments, cpus, environment=None):
        """Start a node; again when the machine was too busy for the 30 s that Ray gives it."""
        for _ in range(_TRIES):
            process, log = self._try_to_start(python, arguments, cpus, environment or {})
            end = time.monotonic() + _STARTS_WITHIN_S
            while process.poll() is None and b"Ray runtime started" not in log.read_bytes():
                assert time.monotonic() < end, f"{arguments} has not started:\n{log.read_text()}"
                time.sleep(0.1)
            if process.poll() is None:
                self._nodes.append(process)
                return
            assert "timed out during startup" in log.read_text(), f"{arguments} ended early:\n{log.read_text()}"
        raise AssertionError(f"{arguments} has not started within 30 s in {_TRIES} tries")

    def _try_to_start(self, python, arguments, cpus, environment):
        """Start a node's process in a folder that is no project's, and return it with its log."""
        ports = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
        options = {
            **{f"--{name}-port": port for name, port in zip(ports, free_ports(len(ports)), strict=True)},
            # Any that is free.
            "--min-worker-port": 0,
            "--max-worker-port": 0,
            "--num-cpus": cpus,
            "--object-store-memory": 100 << 20,
        }
        given = [str(each) for each in (*arguments, *(part for option in options.items() for part in option))]
        log = self.folder / f"{secrets.token_hex(4)}.log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_LEADS_ELSEWHERE)}
        # `python` is what a job says.
        path = f"{Path(python[0]).parent}{os.pathsep}{os.environ['PATH']}"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*python, "-m", "ray.scripts.scripts", "start", *given, "--block", "--disable-usage-stats"],
                cwd=self.folder,
                env={**kept, "HOME": str(self.home), "PATH": path, "RAY_AUTH_MODE": "token", **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return process, log

    def received(self):
        """Return the names of all files that nodes have been sent as code, without what they have compiled of it."""
        folder = self.folder / "ray" / "session_latest" / "runtime_resources" / "working_dir_files"
        found = (path.relative_to(folder).parts[1:] for path in folder.rglob("*") if path.is_file())
        return {"/".join(parts) for parts in found if parts and ".cpython-" not in parts[-1]}

    def close(self):
        """End all nodes, the head last."""
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            for node in self._nodes:
                stack.callback(self._end, node)

    def kill(self):
        """Kill the head and everything that it has started, at once."""
        node = self._nodes.pop()
        process = psutil.Process(node.pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        node.wait(60)

    def _end(self, process):
        """End a node, and see that nothing of it is left."""
        assert process.poll() is None, f"node {process.pid} has ended by itself"
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        process.wait(60)
        _end_all(children)


def workers_of(pid, kind=PREPROCESSES):
    """Return the processes below one that do work of a kind now."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [each for each in psutil.Process(pid).children(recursive=True) if _is_at_work(each, kind)]
    return []


def _is_at_work(process, kind):
    with contextlib.suppress(psutil.Error):
        return process.name().startswith(kind)
    return False


def _command_line(process):
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def _end_all(processes):
    """See that processes have ended."""
    left = psutil.wait_procs(processes, timeout=60)[1]
    for each in left:
        with contextlib.suppress(psutil.Error):
            each.kill()
    assert not left, f"still running after their node: {left}"


def link(target, source, version):
    """Link to a package as it is or, if it says there of which version it is, as another one."""
    said = source / "_version.py"
    if version is None or not said.is_file():
        target.symlink_to(source)
        return
    target.mkdir()
    for path in source.iterdir():
        if path.name not in {said.name, "__pycache__"}:
            (target / path.name).symlink_to(path)
    (target / said.name).write_text(re.sub(r"\bversion = .*", f'version = "{version}"', said.read_text()))


def environment_without(folder, package, version=None):
    """Return the Python of an environment that has what this one has, but for one package.

    Parameters
    ----------
    folder : Path
        Which is made.
    package : str
        It is missing there or, with a version, says that it is of that version.
    """
    site = Path(sysconfig.get_path("purelib"))
    packages = folder / site.relative_to(sys.prefix)
    packages.mkdir(parents=True)
    for path in site.iterdir():
        if path.name.startswith(f"{package}-") and path.suffix == ".dist-info":
            if version:
                info = packages / f"{package}-{version}.dist-info"
                info.mkdir()
                (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        elif path.name != package or version:
            link(packages / path.name, path, version if path.name == package else None)
    base = Path(sys.executable).resolve()
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(base)
    (folder / "pyvenv.cfg").write_text(f"home = {base.parent}\n")
    return folder / "bin" / "python"
