"""What one worker does: join the others, resume, train and validate epoch by epoch, and leave checkpoints.

Runs in a process of its own, started by Ray Train (`train_worker`) or by anything else that sets `TF_CONFIG`
(`run_worker`). Talks to nobody but the other workers: the driver reads progress off the checkpoints.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import keras
import numpy as np
import ray.train
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.errors import ResourceError
from pipeline.store import Store
from training.autoencoder import Autoencoder
from training.checkpoint import Checkpoints
from training.dataset import Spectrograms
from training.initialisation import start_as_pca
from training.params import AutoencoderSection, TrainSection
from training.progress import Begun, Epoch, Progress
from training.step import Errors, SynchronousStep

LOOK_EVERY_S = 2.0
# Between checkpoints, in epochs that take longer.
SAVE_EVERY_S = 300.0
# What a worker returns that was asked to stop.
STOPPED = "stopped"


class Orders(NamedTuple):
    """What all workers do next, the same on each of them.

    Attributes
    ----------
    steps : int
        How many steps to take before the next orders.
    save : bool
        Whether to leave a checkpoint now.
    stop : bool
        Whether to leave a checkpoint now, and end.
    """

    steps: int
    save: bool = False
    stop: bool = False


# Given the seconds that a step takes, and those since the last checkpoint.
Look = Callable[[float, float], Orders]


@dataclass(frozen=True)
class Job:
    """One training, as every worker is told of it.

    Attributes
    ----------
    spectrograms, table, checkpoints : str
        Absolute paths that every worker sees; the last may be a bucket's.
    autoencoder, train : sections of `params.yaml`
    cpus_per_worker : int
    storage, index : str, optional
        Locations of the shards' storage, and of what `Store.share` has written there in place of the first two.
    """

    spectrograms: str
    table: str
    checkpoints: str
    autoencoder: AutoencoderSection
    train: TrainSection
    cpus_per_worker: int
    storage: str | None = None
    index: str | None = None

    def open_store(self) -> Store:
        """Return the spectrograms."""
        if self.storage is None or self.index is None:
            return Store(self.spectrograms, self.table, self.storage)
        return Store.fetch(self.index, self.storage)


def train_worker(config: dict[str, Any]) -> str | None:
    """Run one of Ray Train's workers; `config["job"]` is the `Job`. Return `STOPPED` when its node is to be drained."""
    context = ray.train.get_context()
    return run_worker(config["job"], context.get_world_rank(), context.get_world_size(), look=look_for_drains)


def look_for_drains(step_s: float, unsaved_s: float) -> Orders:
    """Ask Ray whether the node of a worker is being drained; the first worker decides the rest for all."""
    import ray.train.collective  # noqa: PLC0415 - refused outside of Ray Train

    is_drained = ray.train.get_preemption_info() is not None
    orders = Orders(max(1, round(LOOK_EVERY_S / step_s)), unsaved_s > SAVE_EVERY_S, is_drained)
    return Orders(*ray.train.collective.broadcast_from_rank_zero(tuple(orders)))


def run_worker(
    job: Job,
    rank: int,
    num_workers: int,
    report: Callable[[Epoch], None] | None = None,
    look: Look | None = None,
) -> str | None:
    """Train until the job is finished, or its error is no longer finite, together with the other workers.

    Parameters
    ----------
    job : Job
    rank, num_workers : int
        Which of how many this is. With several, `TF_CONFIG` must say where they are.
    report : callable, optional
        Told of each epoch that has ended, after its checkpoint is whole.
    look : callable, optional
        Asked for orders between steps, by all workers after the same ones.

    Returns
    -------
    str, optional
        `STOPPED` when orders said so.
    """
    settings = job.train
    checkpoints = Checkpoints(job.checkpoints)
    if rank == 0:
        # Before the others can have joined, and so before any of them looks where to go on.
        checkpoints.claim()
    strategy = join(settings.seed, job.cpus_per_worker, num_workers)
    store = job.open_store()
    train = Spectrograms(store, "train", settings.target_shape)
    validation = Spectrograms(store, "validation", settings.target_shape)
    with strategy.scope():
        autoencoder, step, progress = _prepare(job, rank, train, strategy, checkpoints)

    def save(state: Progress) -> None:
        if rank == 0:
            checkpoints.save(autoencoder, state)

    interruptible = Interruptible(step, train, settings, (rank, num_workers), look, save)
    while not progress.is_finished(settings.epochs, settings.patience):
        ended = interruptible.train_epoch(progress)
        if ended is None:
            return STOPPED
        trained, seconds = ended
        validated = step.evaluate(validation.evaluation_slices(rank=rank, num_workers=num_workers))
        if not math.isfinite(step.loss(trained) + step.loss(validated)):
            return None  # the driver sees that the last epoch left no checkpoint; another try would end the same way
        samples_per_s = _steps_per_epoch(train, settings) * settings.global_batch_size / seconds
        progress = Progress((*progress.history, _epoch(progress, step, trained, validated, samples_per_s)))
        interruptible.save(progress)
        if report:
            report(progress.history[-1])
    return None


class Interruptible:
    """Trains epochs that may be left, and gone on with, after any step, as if nothing had happened.

    Parameters
    ----------
    step : SynchronousStep
    train : Spectrograms
    settings : TrainSection
    place : (int, int)
        Rank, and number of workers.
    look : callable, optional
        Asked for orders.
    save : callable
        Writes a checkpoint of weights and optimizer as they are, and of the progress that it is given.
    """

    def __init__(
        self,
        step: SynchronousStep,
        train: Spectrograms,
        settings: TrainSection,
        place: tuple[int, int],
        look: Look | None,
        save: Callable[[Progress], None],
    ) -> None:
        self._step = step
        self._train = train
        self._settings = settings
        self._rank, self._num_workers = place
        self._look = look
        self._save = save
        self._saved = time.monotonic()
        self._until_look = 1 if look else sys.maxsize

    def save(self, progress: Progress) -> None:
        """Leave a checkpoint."""
        self._save(progress)
        self._saved = time.monotonic()

    def train_epoch(self, progress: Progress) -> tuple[Errors, float] | None:
        """Go on with an epoch to its end, and return its errors and seconds; None when orders were to stop."""
        n_steps = _steps_per_epoch(self._train, self._settings)
        begun = progress.begun or Begun(0, (), 0.0)
        done, seconds, sums = begun.steps, begun.seconds, self._own_sums(begun)
        slices = self._slices(progress.epoch, done)
        while done < n_steps:
            part = min(self._until_look, n_steps - done)
            started = time.monotonic()
            errors = self._step.train(islice(slices, part))
            part_s = time.monotonic() - started
            # One after the other, so that it does not matter after which step an epoch was left.
            sums = np.cumsum([sums if len(sums) else np.zeros(errors.shape[1]), *errors], axis=0)[-1]
            done, seconds, self._until_look = done + part, seconds + part_s, self._until_look - part
            if self._look and not self._until_look:
                orders = self._look(part_s / part, time.monotonic() - self._saved)
                self._until_look = orders.steps
                if orders.save or orders.stop:
                    everyones = self._step.gather(sums, self._rank).tolist()
                    self.save(Progress(progress.history, Begun(done, tuple(map(tuple, everyones)), seconds)))
                if orders.stop:
                    return None
        return self._step.mean(sums, n_steps), seconds

    def _own_sums(self, begun: Begun) -> NDArray[np.float64]:
        """Return the sums that this worker goes on with: its own or, where there were others, all of theirs as one's.

        What they sum up are means over a worker's slice.
        """
        sums = np.array(begun.sums)
        if len(sums) in {0, self._num_workers}:
            return sums[self._rank] if len(sums) else sums
        return np.asarray(sums.sum(axis=0) * (self._num_workers / len(sums) if self._rank == 0 else 0.0))

    def _slices(self, epoch: int, first: int) -> Iterator[NDArray[np.float32]]:
        settings = self._settings
        return self._train.training_slices(
            epoch,
            settings.seed,
            settings.global_batch_size,
            self._rank,
            self._num_workers,
            first,
            settings.shift_frames,
        )


def initialise(autoencoder: Autoencoder, train: Spectrograms, settings: TrainSection) -> None:
    """Set the weights that training starts from: PCA's, or random ones with the output at the mean of some rows."""
    if settings.initialisation == "pca":
        start_as_pca(autoencoder, train, settings.seed)
    else:
        some = train.rows(np.linspace(0, len(train) - 1, min(256, len(train)), dtype=np.int64))
        autoencoder.set_output_bias(float(some.mean(dtype=np.float64)))


def learning_rate_schedule(settings: TrainSection, steps_per_epoch: int) -> Any:
    """Return the learning rate as a function of the step: a linear warm-up, then constant or half a cosine."""
    warmup_steps = round(settings.warmup_epochs * steps_per_epoch)
    # At least one: a warm-up that ends within the last epoch may round to all of it.
    steps = max(1, settings.epochs * steps_per_epoch - warmup_steps)
    if settings.schedule == "constant" and not warmup_steps:
        return settings.learning_rate
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup_steps else settings.learning_rate,
        decay_steps=steps,
        alpha=1.0 if settings.schedule == "constant" else 0.0,
        warmup_target=settings.learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )


def join(seed: int, cpus: int, num_workers: int) -> Any:
    """Return the strategy over all workers, after everything that TensorFlow takes only before its first operation."""
    tf.config.threading.set_intra_op_parallelism_threads(cpus)
    tf.config.threading.set_inter_op_parallelism_threads(cpus)
    tf.config.experimental.enable_op_determinism()
    # A GPU would round what it multiplies to ten bits, and what comes out would depend on how many rows a worker has.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    keras.utils.set_random_seed(seed)
    return tf.distribute.MultiWorkerMirroredStrategy() if num_workers > 1 else tf.distribute.get_strategy()


def check_cuda() -> None:
    """Refuse a TensorFlow that would train beside the GPU that it is given.

    Raises
    ------
    ResourceError
    """
    if not tf.test.is_built_with_cuda():
        raise ResourceError("resources.use_gpu=true, and the TensorFlow here knows no GPU: make install GPU=1")


def _prepare(
    job: Job, rank: int, train: Spectrograms, strategy: Any, checkpoints: Checkpoints
) -> tuple[Autoencoder, SynchronousStep, Progress]:
    """Return model and step as training begins or goes on with them, on every worker alike, and how far it is."""
    settings = job.train
    autoencoder = Autoencoder(train.shape, **job.autoencoder.model_dump())
    autoencoder.compile(learning_rate_schedule(settings, _steps_per_epoch(train, settings)))
    step = SynchronousStep(
        autoencoder.model,
        autoencoder.optimizer,
        strategy,
        autoencoder.architecture.beta,
        settings.seed,
        precision=settings.precision,
    )
    progress = checkpoints.resume(autoencoder)
    if progress == Progress():
        if rank == 0:
            initialise(autoencoder, train, settings)
        step.share_weights(is_source=rank == 0)
    return autoencoder, step, progress


def _steps_per_epoch(train: Spectrograms, settings: TrainSection) -> int:
    return len(train) // settings.global_batch_size


def _epoch(
    progress: Progress, step: SynchronousStep, trained: Errors, validated: Errors, samples_per_s: float
) -> Epoch:
    """Return the record of the epoch that has just ended."""
    return Epoch(
        epoch=progress.epoch + 1,
        train_mse=trained.mse,
        val_mse=validated.mse,
        learning_rate=step.learning_rate,
        samples_per_s=samples_per_s,
        timestamp_ms=time.time_ns() // 1_000_000,
        train_kl=trained.kl,
        val_kl=validated.kl,
        val_loss=None if validated.kl is None else step.loss(validated),
    )
