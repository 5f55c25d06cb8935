"""MLflow's servers as people start them, in processes of their own: of a model, and of runs."""

import base64
import contextlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import soundfile as sf

_STARTS_WITHIN_S = 240
# What leads a server elsewhere, or gives it what only this project has.
_NOT_PASSED_ON = ("MLFLOW_", "PYTHON", "GENERATIVE_MUSIC_")
# What the model must not need.
_ABSENT = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "dvc", "matplotlib", "pretty_midi", "midirenderer", "tests"):
            raise ModuleNotFoundError(f"No module named {name!r}: absent where the model is served", name=name)

sys.meta_path.insert(0, Absent())
"""


class Server:
    """A server of the model in a folder, which works in that folder's parent.

    Parameters
    ----------
    model : Path
    environment : dict
        What the operator sets.
    """

    def __init__(self, model, **environment):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        absent = model.parent / f"{model.name}.absent"
        absent.mkdir()
        (absent / "sitecustomize.py").write_text(_ABSENT)
        self._log = model.parent / f"{model.name}.log"
        passed_on = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_PASSED_ON)}
        options = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(self.port)]
        path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"  # noqa: PTH120 of a program
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "models", "serve", "-m", model.name, *options],
                cwd=model.parent,
                env={**passed_on, "PATH": path, "PYTHONPATH": str(absent), **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self):
        """What it has printed so far."""
        return self._log.read_text(encoding="utf-8", errors="backslashreplace")

    def wait(self):
        """Wait until it answers `/ping`, and return it."""
        end = time.monotonic() + _STARTS_WITHIN_S
        while True:
            assert self.process.poll() is None, f"the server ended:\n{self.log}"
            assert time.monotonic() < end, f"the server does not answer:\n{self.log}"
            with contextlib.suppress(OSError):
                if self.ping() == 200:
                    return self
            time.sleep(0.1)

    def ping(self):
        """Return the status with which it says that it is there."""
        return self._send("GET", "/ping", None, {})[0]

    def post(self, body, content_type="application/json"):
        """Send a body, and return the status and the text of the response."""
        headers = {"Content-Type": content_type} if content_type else {}
        return self._send("POST", "/invocations", body, headers)

    def ask(self, *inputs):
        """Send inputs, and return their replies."""
        status, text = self.post(json.dumps({"inputs": inputs}))
        assert status == 200, text
        return json.loads(text)["predictions"]

    def close(self):
        """End it, and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)

    def _send(self, method, path, body, headers):
        # Anew each time: a server closes a connection that has been idle for some seconds.
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8")


class TrackingServer:
    """A server of runs with its database and artifacts in a folder, which can be killed, halted and started again."""

    def __init__(self, folder):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self._port = listener.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._folder = folder
        self._process = None

    def start(self):
        """Start it, and wait until it answers."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_PASSED_ON)}
        log = self._folder / "server.log"
        stores = ["--backend-store-uri", f"sqlite:///{self._folder}/runs.db"]
        stores += ["--artifacts-destination", str(self._folder / "artifacts")]
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *stores, "--port", str(self._port), "--workers", "1"],
                cwd=self._folder,
                env={
                    **kept,
                    "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}",  # noqa: PTH120
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                },
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + _STARTS_WITHIN_S
        while not self._answers():
            assert self._process.poll() is None, f"the server ended:\n{log.read_text()}"
            assert time.monotonic() < end, f"the server does not answer:\n{log.read_text()}"
            time.sleep(0.1)

    def kill(self):
        """Kill it, and all that it started."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(20)
            self._process = None

    def halt(self):
        """Let it accept connections, and answer no more."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def go_on(self):
        """Let it answer again."""
        os.killpg(self._process.pid, signal.SIGCONT)

    def _answers(self):
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        with contextlib.closing(connection), contextlib.suppress(OSError):
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False


def to_base64(y, sample_rate, **options):
    """Return base64 of the bytes of a file, by default of a WAV file, of a signal (n,) or (n, n_channels)."""
    file = io.BytesIO()
    sf.write(file, y, sample_rate, **{"format": "WAV", **options})
    return base64.b64encode(file.getvalue()).decode("ascii")


def from_base64(text):
    """Return the signal (n,) or (n, n_channels) and the rate of what `to_base64` or a server made."""
    y, sample_rate = sf.read(io.BytesIO(base64.b64decode(text, validate=True)), dtype=np.float32)
    return y, sample_rate
