"""Stage `train`: the autoencoder, by Ray Train's workers, in one MLflow run."""

import argparse
import contextlib
import hashlib
import json
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pipeline import command, engine, storage
from pipeline.errors import CorpusError, ModelError, ParameterError, ResourceError
from pipeline.packages import TRAINING
from pipeline.params import read_params
from pipeline.paths import SPECTROGRAMS, TABLE
from pipeline.storage import file_sha256
from pipeline.store import Store
from training import tracking, tracking_origin, workers
from training.autoencoder import Autoencoder
from training.checkpoint import OWNER, Checkpoints
from training.codes import FITTED_ROWS, choose_rows, encode
from training.dataset import Spectrograms
from training.density import Density
from training.description import DESCRIPTION_FILE, Description
from training.initialisation import check_starts_as_pca
from training.loop import Job, check_cuda
from training.params import Params
from training.paths import CURVES, MODEL, TRAIN_METRICS, checkpoint_location, shared_paths
from training.pictures import reconstruction_grid
from training.progress import Epoch, Progress, write_curves
from training.sound import SoundAutoencoder
from training.tracking_delivery import Delivery

PICTURES = 5
# Beside the checkpoints, while a training runs: Ray's notes on it, and what describes the spectrograms.
RAY_NOTES, INDEX = ".ray", ".data"
_SHAPES_THE_MODEL = "adam autoencoder checkpoint codes dataset exchange initialisation layers loop network step".split()


def training_key(params: Params, data_digest: str) -> str:
    """Return the digest of everything that the trained weights follow from: data, parameters, code."""
    folder = Path(tracking.__file__).parent
    content = {
        "data": data_digest,
        "autoencoder": params.autoencoder.model_dump(),
        "train": params.train.model_dump(),
        "code": {name: file_sha256(folder / f"{name}.py") for name in _SHAPES_THE_MODEL},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def check(params: Params, train: Spectrograms, validation: Spectrograms) -> None:
    """Refuse, before anything is started, what could only fail later."""
    if params.resources.use_gpu:
        check_cuda()
    architecture = Autoencoder(train.shape, **params.autoencoder.model_dump()).architecture
    if params.train.initialisation == "pca":
        check_starts_as_pca(architecture)
    if len(train) < params.train.global_batch_size:
        raise ParameterError(
            f"train.global_batch_size={params.train.global_batch_size} is more than the {len(train)} spectrograms to "
            "train on"
        )
    if not len(validation):
        raise CorpusError(
            f"no spectrogram is left for validation: split.validation_share={params.split.validation_share} of "
            f"{len(train)} clips"
        )


class Watcher:
    """Follows the checkpoints of a training from the driver: prints each epoch, and sends it to be tracked.

    Parameters
    ----------
    checkpoints : Checkpoints
    send : callable
        Is given all epochs so far.
    epochs : int
        At most.
    draw : callable, optional
        Is given the number of an epoch that has just ended, five times in a training. It reads the checkpoints as this
        does, so that no worker waits for it.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        send: Callable[[Sequence[Epoch]], None],
        epochs: int,
        draw: Callable[[int], None] | None = None,
    ) -> None:
        self._checkpoints = checkpoints
        self._send = send
        self._draw = draw
        self._epochs = epochs
        self._draw_every = -(-epochs // PICTURES)
        self._printed = checkpoints.progress().epoch
        self._sent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """Print and send the epochs that have ended since the last look."""
        history = self._checkpoints.progress().history
        # From the first: a run that lost its driver lacks what that driver had not sent.
        if len(history) > self._sent:
            self._send(history)
            self._sent = len(history)
        for epoch in history[self._printed :]:
            print(f"train: epoch {epoch.epoch}/{self._epochs}  {epoch.describe()}", flush=True)
        if self._draw and len(history) // self._draw_every > self._printed // self._draw_every:
            self._draw(len(history))
        self._printed = len(history)

    def _follow(self) -> None:
        while not self._stop.wait(self._checkpoints.poll_s):
            # A storage that is away is asked again, and in the end.
            with contextlib.suppress(ResourceError):
                self.look()


def draw_progress(
    checkpoints: Checkpoints,
    description: Description,
    validation: Spectrograms,
    number: int,
    log: Callable[[Path, int], None],
    epoch: int,
) -> None:
    """Draw what the newest weights make of some validation clips, the same ones every time."""
    try:
        sound = SoundAutoencoder(checkpoints.load_newest(), description)
    except ModelError:
        return  # the next epoch has superseded it meanwhile, and will be drawn in its turn
    which = np.unique(np.linspace(0, len(validation) - 1, min(number, len(validation)), dtype=np.int64))
    x = validation.rows(which)
    x_hat, _ = sound.autoencoder.reconstruct(x)
    min_db, max_db = (values[which] for values in validation.extremes_db)
    originals_db, reconstructions_db = (sound.to_db(each, min_db, max_db) for each in (x, x_hat))
    titles = [validation.clip_ids[place] for place in which]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "picture.png")
        reconstruction_grid(path, originals_db, reconstructions_db, titles, sound.extractor, sound.sample_rate)
        log(path, epoch)


def share(store: Store, checkpoints: Checkpoints, where: str | None) -> str | None:
    """Write what describes the spectrograms to the storage, and return where; workers may not see this folder then."""
    if where is None:
        return None
    location = checkpoints.beside(INDEX).location
    store.share(location)
    return location


def fit(params: Params, store: Store, checkpoints: Checkpoints, verbose: bool) -> None:
    """Run the workers until the training is finished."""
    job = Job(
        str(SPECTROGRAMS.absolute()),
        str(TABLE.absolute()),
        checkpoints.location,
        params.autoencoder,
        params.train,
        params.resources.cpus_per_worker,
        params.resources.storage,
        share(store, checkpoints, params.resources.storage),
    )
    with engine.connect(verbose):
        workers.train(job, params, checkpoints.beside(RAY_NOTES).location)
    progress = checkpoints.progress()
    if not progress.is_finished(params.train.epochs, params.train.patience):
        raise ParameterError(
            f"train: the error is no longer finite after epoch {progress.epoch}; lower "
            f"train.learning_rate={params.train.learning_rate}"
        )


def export(checkpoints: Checkpoints, description: Description, train: Spectrograms, seed: int) -> Autoencoder:
    """Write the best model, the density of its latent codes, and the curves where DVC looks for them."""
    progress = checkpoints.progress()
    autoencoder = checkpoints.load_best()
    autoencoder.save(MODEL)
    (MODEL / DESCRIPTION_FILE).write_text(description.to_json(), encoding="utf-8")
    density = fit_density(autoencoder, train, seed)
    density.save(MODEL)
    judged = ", ".join(f"{family} {score:.1f}" for family, score in density.family_scores.items())
    said = f"; nats per held-out row: {judged}" if judged else ""
    print(f"train: density of the latent codes: {density.describe()}{said}", flush=True)
    write_curves(CURVES, progress)
    best: dict[str, float | None] = {
        "epochs": progress.epoch,
        "best_epoch": progress.best.epoch,
        "val_mse": progress.best.val_mse,
    }
    if progress.best.val_kl is not None:
        best |= {"val_kl": progress.best.val_kl, "val_loss": progress.best.val_loss}
    TRAIN_METRICS.write_text(json.dumps(best, indent=2) + "\n", encoding="utf-8")
    return autoencoder


def describe_best(best: dict[str, float]) -> str:
    """Return what was best of the best epoch, which of a variational autoencoder is the loss."""
    error = f"val_mse {best['val_mse']:.6f}"
    return f"val_loss {best['val_loss']:.6f} ({error})" if "val_loss" in best else error


def fit_density(autoencoder: Autoencoder, train: Spectrograms, seed: int) -> Density:
    """Return the density of the latent codes of what was trained on, or of some of it, chosen by the seed."""
    rows = choose_rows(len(train), FITTED_ROWS, seed)
    codes = encode(autoencoder, train, rows)
    groups = train.groups
    return Density.fit(codes.z, codes.min_db, codes.max_db, seed, [groups[row] for row in rows])


def main(arguments: argparse.Namespace) -> None:
    """Train the autoencoder that `params.yaml` describes, or go on where a killed run stopped."""
    params = read_params(Params, arguments.params)
    if params.resources.storage is not None:
        storage.check(params.resources.storage)
    store = Store(SPECTROGRAMS, TABLE, params.resources.storage)
    train = Spectrograms(store, "train", params.train.target_shape)
    validation = Spectrograms(store, "validation", params.train.target_shape)
    check(params, train, validation)
    tracking.check_shared(engine.inspect(TRAINING, *shared_paths(params.resources.storage)))
    key = training_key(params, train.store.digest)
    checkpoints = Checkpoints(checkpoint_location(key, params.resources.storage))
    progress = checkpoints.progress()
    print(
        f"train: {len(train)} spectrograms, {len(validation)} for validation, "
        f"{' or '.join(map(str, params.worker_counts))} workers"
        + (f", resumed after {progress.describe()}" if progress != Progress() else ""),
        flush=True,
    )
    begin = partial(tracking_origin.log_data, corpus=params.corpus.dir, store=train.store)
    with Delivery(key, params, progress != Progress(), begin) as delivery:
        description = Description(key, train.store.digest, train.store.format.parameters, params.train.target_shape)
        picture = partial(delivery.send_picture, "validation")
        draw = partial(draw_progress, checkpoints, description, validation, params.evaluate.examples, picture)
        with Watcher(checkpoints, delivery.send, params.train.epochs, draw):
            if not progress.is_finished(params.train.epochs, params.train.patience):
                fit(params, store, checkpoints, arguments.verbose)
        export(checkpoints, description, train, params.train.seed)
        undelivered = delivery.finish(checkpoints.progress(), MODEL)
    # The checkpoints stay until the evaluation, before which DVC takes note of what was trained: a kill in between
    # would cost the whole training.
    for suffix in (RAY_NOTES, INDEX, OWNER):
        checkpoints.beside(suffix).clear()
    best = json.loads(TRAIN_METRICS.read_text(encoding="utf-8"))
    print(
        f"train: best {describe_best(best)} in epoch {best['best_epoch']} of {best['epochs']}; "
        + (f"MLflow run {delivery.run_id}" if delivery.run_id else "no MLflow run yet")
    )
    if undelivered:
        print(
            f"train: {undelivered}; all of it is kept, and `dvc repro` delivers it when the server is back, or to "
            "another one that MLFLOW_TRACKING_URI names"
        )


if __name__ == "__main__":
    command.run(engine.stage(main, TRAINING), command.parser(__doc__).parse_args())
