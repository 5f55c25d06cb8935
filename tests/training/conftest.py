"""What several tests of `training` share: a store of generated notes, and the small network for it."""

import dataclasses
import warnings

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline.corpus import Splitter
from pipeline.loader import Loader
from pipeline.normaliser import MinMaxNormaliser
from pipeline.padder import Padder
from pipeline.params import PARAMS_FILE, read_params
from pipeline.paths import SPECTROGRAMS, TABLE
from pipeline.preprocessing import PreprocessingPipeline
from pipeline.spectrogram import LogSpectrogramExtractor
from pipeline.store import Saver, Store
from tests import postgresql
from tests.sounds import write
from training.autoencoder import Autoencoder
from training.loop import Job
from training.params import AutoencoderSection, Params, TrainSection
from training.progress import Epoch, Progress

with warnings.catch_warnings():
    # MLflow warns of classes of its own, and of what its tables ask of SQLAlchemy.
    warnings.simplefilter("ignore")
    import mlflow

    from training import tracking

SAMPLE_RATE = 8000
DURATION_S = 0.06
SHAPE = (16, 16, 1)
NETWORK = {
    "conv_filters": [6, 6],
    "conv_kernels": [3, 3],
    "conv_strides": [2, [4, 2]],
    "latent_space_dim": 6,
    "variational": False,
    "beta": 1e-3,
}
TRAINING = {
    "epochs": 4,
    "global_batch_size": 16,
    "initialisation": "random",
    "learning_rate": 5e-3,
    "schedule": "cosine",
    "precision": "float32",
    "warmup_epochs": 0.5,
    "patience": 10,
    "shift_frames": 1,
    "target_shape": None,
    "seed": 0,
}
# What tests count on; everything else is as in the repository's own file.
FIXED = {
    "corpus.dir": "sounds",
    "split.group": r"^(?P<group>[^/]+/[^_]+)",
    "preprocess.sample_rate": SAMPLE_RATE,
    "preprocess.duration_s": DURATION_S,
    "preprocess.n_fft": 32,
    "preprocess.hop_length": 32,
    "resources.train_workers": 1,
    "resources.cpus_per_worker": 1,
    **{f"autoencoder.{name}": value for name, value in NETWORK.items()},
    **{f"train.{name}": value for name, value in TRAINING.items()},
}
ABSENT = object()


def make_progress(*val_mses):
    """Return the progress of epochs with these errors."""
    return Progress(
        tuple(
            Epoch(number, 0.1 / 3 / number, val_mse, 1e-3 / number, 500.0 + number, 1_700_000_000_000 + number)
            for number, val_mse in enumerate(val_mses, start=1)
        )
    )


def write_notes(folder, rng):
    """Write 144 notes: three instruments, twelve pitches, four velocities; and return the folder."""
    t = np.arange(round(DURATION_S * SAMPLE_RATE)) / SAMPLE_RATE
    for instrument, harmonics in enumerate((1, 3, 6)):
        for pitch in range(48, 84, 3):
            frequency_hz = 440 * 2 ** ((pitch - 69) / 12)
            y = sum(np.sin(2 * np.pi * h * frequency_hz * t) / h for h in range(1, harmonics + 1))
            y *= np.exp(-t * (5 + 20 * instrument))
            for velocity in (32, 64, 96, 127):
                noise = 1e-3 * rng.normal(size=len(t))
                write(folder / f"instrument{instrument}" / f"{pitch}_{velocity}.wav", 0.3 * y * velocity / 127 + noise)
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The `data/` of a project: 16 x 16 spectrograms of generated notes."""
    folder = tmp_path_factory.mktemp("project")
    PreprocessingPipeline(
        Loader(SAMPLE_RATE, DURATION_S),
        Padder(),
        LogSpectrogramExtractor(32, 32),
        MinMaxNormaliser(),
        Saver(folder / SPECTROGRAMS, folder / TABLE),
        Splitter(group=FIXED["split.group"], validation_share=0.2, test_share=0.2),
    ).preprocess(write_notes(folder / "sounds", np.random.default_rng(1)))
    return folder / "data"


@pytest.fixture(scope="session")
def store(data):
    """Return the store in `data`."""
    return Store(data.parent / SPECTROGRAMS, data.parent / TABLE)


@pytest.fixture(scope="session")
def make_job(data):
    """Return a function that describes a training on `data`, with some settings changed."""

    def make(checkpoints, **settings):
        return Job(
            str(data.parent / SPECTROGRAMS),
            str(data.parent / TABLE),
            str(checkpoints),
            AutoencoderSection(**NETWORK),
            TrainSection(**TRAINING | settings),
            cpus_per_worker=1,
        )

    return make


@pytest.fixture
def autoencoder():
    """Return an untrained network for 16 x 16 spectrograms, with weights that are nowhere as they start."""
    return randomised(Autoencoder(SHAPE, **NETWORK))


def randomised(autoencoder, seed=0):
    """Return an autoencoder after every weight, moving statistics included, was drawn anew."""
    rng = np.random.default_rng(seed)
    for variable in autoencoder.model.weights:
        values = rng.normal(scale=0.3, size=variable.shape)
        variable.assign(np.abs(values) + 0.5 if "variance" in variable.path else values)
    return autoencoder


@pytest.fixture
def make_project(pytestconfig, data):
    """Return a function that makes a folder a project: `data/`, and `params.yaml` with values by dotted name."""
    yaml = YAML(typ="safe", pure=True)

    def make(folder, changes=None):
        content = yaml.load((pytestconfig.rootpath / PARAMS_FILE).read_text(encoding="utf-8"))
        for name, value in {**FIXED, **(changes or {})}.items():
            section, _, key = name.partition(".")
            if value is ABSENT:
                del content[section][key]
            else:
                content[section][key] = value
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "data").symlink_to(data)
        with (folder / PARAMS_FILE).open("w", encoding="utf-8") as file:
            yaml.dump(content, file)
        return folder

    return make


def without_clock(progress):
    """Return the history of a training without what depends on when it ran, and how fast."""
    return [dataclasses.replace(epoch, samples_per_s=0.0, timestamp_ms=0) for epoch in progress.history]


# --- MLflow

# What a person's shell, DVC or `mlflow run` may have set.
_ELSEWHERE = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID")
_ELSEWHERE += ("DVC_ROOT", "DVC_EXP_NAME")


@pytest.fixture
def nowhere_else(tmp_path, monkeypatch):
    """A folder of its own, and nothing in the environment that leads elsewhere."""
    for name in _ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    yield
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)
    mlflow.tracking.fluent._active_experiment_id = None


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def database(request, tmp_path_factory):
    """Address of a database of each kind, which all tests share, since making its tables takes seconds."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    else:
        with postgresql.server() as address:
            yield address


@pytest.fixture
def client(nowhere_else, database, monkeypatch):
    """Return a client connected as stages are."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    with tracking.connect() as client:
        yield client


@pytest.fixture
def params(tmp_path, make_project):
    return read_params(Params, make_project(tmp_path / "project") / PARAMS_FILE)


@pytest.fixture
def key(request):
    """Return a training key that no other test has."""
    return request.node.name


@pytest.fixture
def log_model(client, params, autoencoder, tmp_path):
    """Return a function that logs a network as the model of a training's run."""
    autoencoder.save(tmp_path / "model")

    def log(key):
        with tracking.training_run(client, key, params) as run:
            tracking.log_model(client, run.info.run_id, tmp_path / "model")
        return client.get_run(run.info.run_id)

    return log
