"""MLflow's server over two runs as the stages log them, and a browser."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from pipeline.params import PARAMS_FILE, read_params
from pipeline.spectrogram import LogSpectrogramExtractor
from tests.sounds import sine, write
from training import tracking
from training.params import Params
from training.pictures import reconstruction_grid
from training.progress import Epoch
from training.space import with_values

ROOT = Path(__file__).resolve().parents[2]
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --autoplay-policy=no-user-gesture-required"
).split()
DIMS = (16, 64)


def log_run(client, params, folder, dim):
    """Log what a training and an evaluation log, and return the run's id."""
    rng = np.random.default_rng(dim)
    n_epochs = 10
    extractor = LogSpectrogramExtractor(512, 256)
    y = np.stack([sine(220.0 * number) for number in range(1, 5)])
    S_db = extractor.extract(y)
    with tracking.training_run(
        client, f"key of {dim}", with_values(params, {"autoencoder.latent_space_dim": dim})
    ) as run:
        run_id = run.info.run_id
        client.set_tag(run_id, "mlflow.runName", f"latent {dim}")
        now = time.time_ns() // 1_000_000
        mses = 0.03 / np.arange(1, n_epochs + 1) ** 0.5 * (16 / dim) ** 0.3
        history = [Epoch(n, mse, 1.2 * mse, 1e-3, 500.0, now + n) for n, mse in enumerate(mses.tolist(), start=1)]
        tracking.deliver(client, run_id, history)
        for epoch in (2, 6, 10):
            noisy = S_db + rng.normal(scale=20 / epoch, size=S_db.shape).astype(np.float32)
            reconstruction_grid(folder / "picture.png", S_db, noisy, ["a", "b", "c", "d"], extractor, 22050)
            tracking.log_picture(client, run_id, "validation", folder / "picture.png", epoch)
        figures = {"test_mse": 1.1 * mses[-1], "pca_test_mse": 0.8 * mses[-1], "test_clips": 4}
        files = [write(folder / "01_note.original.wav", np.tile(y[0], 4), 22050)]
        tracking.log_report(client, run_id, figures, files, "evaluate")
    return run_id


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Two runs in a database of their own: its folder, and their ids."""
    folder = tmp_path_factory.mktemp("browser")
    params = read_params(Params, ROOT / PARAMS_FILE)
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("MLFLOW_RUN", "MLFLOW_EXP", "DVC_"))]:
            patch.delenv(name)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.chdir(folder)
        with tracking.connect() as client:
            yield folder, [log_run(client, params, folder, dim) for dim in DIMS]


@pytest.fixture(scope="session")
def server(runs):
    """Address of MLflow's server over these runs, started as `make ui` does."""
    folder, _ = runs
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            cwd=folder,
            env={**os.environ, "PATH": path, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    end = time.monotonic() + 120
    while not answers(f"{address}/health"):
        assert process.poll() is None, (folder / "server.log").read_text()
        assert time.monotonic() < end, (folder / "server.log").read_text()
        time.sleep(0.2)
    yield address
    os.killpg(process.pid, 15)
    process.wait(30)


def answers(address):
    """Return whether a server answers."""
    try:
        with urllib.request.urlopen(address, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium with an empty profile."""
    api = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if not program:
        pytest.skip("no chromium on the path")
    with tempfile.TemporaryDirectory() as profile, api.sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=program, headless=True, args=FLAGS, viewport={"width": 1800, "height": 1000}
        )
        # A fresh browser opens in a mode for language models, which hides runs.
        context.add_init_script("localStorage.setItem('mlflow.workflowType_v1', '\"machine_learning\"')")
        context.set_default_timeout(30_000)
        yield context
        context.close()


@pytest.fixture
def page(browser):
    """A page of its own."""
    page = browser.new_page()
    yield page
    page.close()


@pytest.fixture(scope="session")
def screenshot(request):
    """Return a function that keeps a page as a small PNG in `docs/` when SCREENSHOTS is set."""
    from PIL import Image

    def take(page, name):
        if os.environ.get("SCREENSHOTS"):
            path = ROOT / "docs" / f"{name}.png"
            page.screenshot(path=path)
            with Image.open(path) as image:
                image.quantize(64).save(path, optimize=True)

    return take
