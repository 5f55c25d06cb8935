"""Clusters of Ray nodes as people start them: `ray start` in processes of their own, on free ports, with a token.

Every node is ended by the id of its process, and whatever it has started ends with it.
"""

import contextlib
import os
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
_LEADS_ELSEWHERE = ("RAY_", "MLFLOW_", "DVC_", "PYTHON", "GENERATIVE_MUSIC_")


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
    """

    def __init__(self, home, python=sys.executable):
        self.home = home
        # Short, since Ray puts sockets there, whose paths may have about 100 letters.
        self.folder = Path(tempfile.mkdtemp(prefix="gm", dir="/tmp"))
        self._nodes = []
        self.port, dashboard, client = free_ports(3)
        self.jobs = f"http://127.0.0.1:{dashboard}"
        self.address = f"127.0.0.1:{self.port}"
        ports = ("--port", self.port, "--dashboard-port", dashboard, "--ray-client-server-port", client)
        self._start(python, "--head", *ports, "--dashboard-host", "127.0.0.1", "--temp-dir", self.folder / "ray")

    def add(self, python=sys.executable, cpus=1):
        """Start a node that joins, and return its name for error messages."""
        return self._start(python, "--address", self.address, cpus=cpus)

    def _start(self, python, *arguments, cpus=2):
        """Start a node in a folder that is no project's."""
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
        log = self.folder / f"{len(self._nodes)}.log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_LEADS_ELSEWHERE)}
        # `python` is what a job says.
        path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [python, "-m", "ray.scripts.scripts", "start", *given, "--block", "--disable-usage-stats"],
                cwd=self.folder,
                env={**kept, "HOME": str(self.home), "PATH": path, "RAY_AUTH_MODE": "token"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self._nodes.append(process)
        end = time.monotonic() + _STARTS_WITHIN_S
        while b"Ray runtime started" not in (said := log.read_bytes()):
            assert process.poll() is None, f"{given} ended early:\n{said.decode()}"
            assert time.monotonic() < end, f"{given} has not started:\n{said.decode()}"
            time.sleep(0.1)

    def received(self):
        """Return the names of all files that nodes have been sent as code."""
        folder = self.folder / "ray" / "session_latest" / "runtime_resources" / "working_dir_files"
        found = (path.relative_to(folder).parts[1:] for path in folder.rglob("*") if path.is_file())
        return {"/".join(parts) for parts in found if parts}

    def close(self):
        """End all nodes, and see that nothing of them is left."""
        left = []
        for process in reversed(self._nodes):
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            left += psutil.wait_procs(children, timeout=30)[1]
            process.wait(30)
        for each in left:
            with contextlib.suppress(psutil.Error):
                each.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        assert not left, f"still running after their nodes: {left}"


def environment_without(folder, package, version=None):
    """Return the Python of an environment that has what this one has, but for one package.

    Parameters
    ----------
    folder : Path
        Which is made.
    package : str
        It is not there, or, with a version, there in name as that version.
    """
    packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    packages.mkdir(parents=True)
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        name = path.name.partition("-")[0].lower()
        if name != package:
            (packages / path.name).symlink_to(path)
        elif version and path.name.endswith(".dist-info"):
            ...
    return folder
