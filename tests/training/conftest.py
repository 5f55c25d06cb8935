"""What several tests of `training` share: a store of generated notes, and the small network for it."""

import dataclasses

import numpy as np
import pytest
from ruamel.yaml import YAML

from pipeline.corpus import Splitter
from pipeline.loader import Loader
from pipeline.normaliser import MinMaxNormaliser
from pipeline.padder import Padder
from pipeline.params import PARAMS_FILE
from pipeline.paths import SPECTROGRAMS, TABLE
from pipeline.preprocessing import PreprocessingPipeline
from pipeline.spectrogram import LogSpectrogramExtractor
from pipeline.store import Saver, Store
from tests.sounds import write
from training.autoencoder import Autoencoder
from training.loop import Job
from training.params import AutoencoderSection, TrainSection
from training.progress import Epoch, Progress

SAMPLE_RATE = 8000
DURATION_S = 0.06
SHAPE = (16, 16, 1)
NETWORK = {"conv_filters": [6, 6], "conv_kernels": [3, 3], "conv_strides": [2, [4, 2]], "latent_space_dim": 6}
TRAINING = {
    "epochs": 4,
    "global_batch_size": 16,
    "initialisation": "random",
    "learning_rate": 5e-3,
    "schedule": "cosine",
    "warmup_epochs": 0.5,
    "patience": 10,
    "target_shape": None,
    "seed": 0,
}
# What tests count on; everything else is as in the repository's own file.
_FIXED = {
    "corpus.dir": "sounds",
    "split.group": r"^(?P<group>[^/]+/[^_]+)",
    "preprocess.sample_rate": SAMPLE_RATE,
    "preprocess.duration_s": DURATION_S,
    "preprocess.n_fft": 32,
    "preprocess.hop_length": 32,
    "resources.train_workers": 1,
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
        Splitter(group=_FIXED["split.group"], validation_share=0.2, test_share=0.2),
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
        for name, value in {**_FIXED, **(changes or {})}.items():
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
