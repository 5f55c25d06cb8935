"""The served model through `mlflow models serve` and HTTP, beside the same Keras model in this process.

Same model, same cores: `keras.Model.predict` of spectrograms that are ready; the Keras model called directly, from the
bytes of sound files to vectors or signals, as a program without a server would; then the server, at each number of
concurrent clients. The server idles while this process works. Medians of several rounds. Repeat it with, after
`dvc repro`,

    python -m benchmarks.serving

or with `--logged-model`, the folder of a logged model.
"""

import argparse
import base64
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

CLIENTS = (1, 8)
BATCHES = (1, 32)
TASKS = ("encode", "reconstruct")


def make_audio(sample_rate: int, duration_s: float) -> str:
    """Return base64 of a WAV file: a decaying tone and noise."""
    t = np.arange(round(sample_rate * duration_s)) / sample_rate
    noise = np.random.default_rng(0).normal(size=len(t))
    y = 0.5 * np.exp(-3 * t) * np.sin(2 * np.pi * 440 * t) + 0.01 * noise
    file = io.BytesIO()
    sf.write(file, y, sample_rate, format="WAV")
    return base64.b64encode(file.getvalue()).decode("ascii")


@contextmanager
def serve(model: Path) -> Iterator[int]:
    """Serve a model in an empty folder for a `with` block, and yield the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    options = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model.absolute()), *options]
    with tempfile.TemporaryDirectory() as folder:
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, cwd=folder, **quiet)
        try:
            while not is_up(port):
                if process.poll() is not None:
                    raise SystemExit(f"the server ended; see what it says: {' '.join(command)}")
                time.sleep(0.2)
            yield port
        finally:
            process.terminate()
            process.wait(30)


def is_up(port: int) -> bool:
    """Return whether a server answers."""
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/ping")
        return connection.getresponse().status == 200
    except OSError:
        return False


def measure_server(port: int, body: bytes, n_clients: int, seconds: float) -> tuple[list[float], float]:
    """Return the seconds that each request took, and the requests per second of all clients together."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        while (started := time.perf_counter()) < end:
            connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            if response.status != 200:
                raise SystemExit(text.decode())
            times.append(time.perf_counter() - started)
        connection.close()

    started = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, len(times) / (time.perf_counter() - started)


def measure_call(function: Callable[[], object], seconds: float) -> tuple[list[float], float]:
    """Return the seconds that each call took, and the calls per second; the first does not count."""
    function()
    times = []
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        before = time.perf_counter()
        function()
        times.append(time.perf_counter() - before)
    return times, len(times) / (time.perf_counter() - started)


def in_process(folder: Path, audio: str) -> dict[tuple[str, int, str], Callable[[], object]]:
    """Return what is done without a server, by task, batch, and what of it is done."""
    from training.sound import SoundAutoencoder

    sound = SoundAutoencoder.load(folder)
    content = base64.b64decode(audio)
    loader = sound.whole_loader()
    y = loader.load_bytes(content).y
    ready = np.concatenate([sound.analyse(y).x] * max(BATCHES))
    encoder, model = sound.autoencoder.encoder, sound.autoencoder.model  # type: ignore[attr-defined]

    def encode(n: int) -> None:
        sound.encode([sound.analyse(loader.load_bytes(content).y) for _ in range(n)])

    def reconstruct(n: int) -> None:
        spectra = [sound.analyse(loader.load_bytes(content).y) for _ in range(n)]
        codes = sound.encode(spectra)
        for x_hat, each, of in zip(sound.decode(codes), codes, spectra, strict=True):
            sound.synthesise(x_hat, each, of.n_channels, of.n_samples)

    calls: dict[tuple[str, int, str], Callable[[], object]] = {}
    for n in BATCHES:
        calls["encode", n, "keras"] = lambda n=n: encoder.predict(ready[:n], batch_size=n, verbose=0)
        calls["reconstruct", n, "keras"] = lambda n=n: model.predict(ready[:n], batch_size=n, verbose=0)
        calls["encode", n, "whole"] = lambda n=n: encode(n)
        calls["reconstruct", n, "whole"] = lambda n=n: reconstruct(n)
    return calls


def line(name: str, times: list[float], clips_per_s: float, beside: tuple[float, float]) -> str:
    """Return a row of the table."""
    p50, p99 = (1000 * float(np.percentile(times, q)) for q in (50, 99))
    ratios = " | ".join(f"{clips_per_s / other:.2f}" for other in beside)
    return f"| {name} | {p50:.1f} | {p99:.1f} | {clips_per_s:.0f} | {ratios} |"


def main(arguments: argparse.Namespace) -> None:
    """Measure, and print a Markdown table."""
    (weights,) = arguments.logged_model.rglob("autoencoder.json")
    audio = make_audio(22050, 0.74)
    calls = in_process(weights.parent, audio)
    times: dict[Any, list[float]] = {}
    rates: dict[Any, list[float]] = {}

    def note(key: Any, n: int, measured: tuple[list[float], float]) -> None:
        times.setdefault(key, []).extend(measured[0])
        rates.setdefault(key, []).append(measured[1] * n)
        print(f"{key}: {measured[1] * n:.0f} clips/s", file=sys.stderr, flush=True)

    with serve(arguments.logged_model) as port:
        for repeat in range(arguments.repeats):
            for task in TASKS:
                for n in BATCHES:
                    body = json.dumps({"inputs": [{"task": task, "audio": audio}] * n}).encode()
                    for what in ("keras", "whole"):
                        note((task, n, what), n, measure_call(calls[task, n, what], arguments.seconds))
                    for clients in CLIENTS[:: 1 if repeat % 2 == 0 else -1]:
                        note((task, n, clients), n, measure_server(port, body, clients, arguments.seconds))
    print("| | p50 (ms) | p99 (ms) | clips/s | beside `predict` alone | beside sound to result |")
    print("|---|---|---|---|---|---|")
    names = {"keras": "`predict`, ready spectrograms", "whole": "sound to result, in process"}
    for key, measured in times.items():
        task, n, what = key
        name = f"{task}, {n} a request, {names.get(what) or f'server, {what} clients'}"
        medians = statistics.median(rates[task, n, "keras"]), statistics.median(rates[task, n, "whole"])
        print(line(name, measured, statistics.median(rates[key]), medians))


def find_logged_model() -> Path:
    """Return the newest model that MLflow has in this project."""
    found = sorted(Path("mlartifacts/models").glob("*/artifacts"), key=os.path.getmtime)
    if not found:
        raise SystemExit("mlartifacts/ holds no model: run `dvc repro` first, or say which with --logged-model")
    return found[-1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logged-model", type=Path, help="folder of a logged model (default: the newest here)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    given = parser.parse_args()
    given.logged_model = given.logged_model or find_logged_model()
    main(given)
