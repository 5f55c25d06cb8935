"""What one worker does: join the others, resume, train and validate epoch by epoch, and leave checkpoints.

Runs in a process of its own, started by Ray Train (`train_worker`) or by anything else that sets `TF_CONFIG`
(`run_worker`). Talks to nobody but the other workers: the driver reads progress off the checkpoints.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import ray.train
import tensorflow as tf

from pipeline.errors import ResourceError
from pipeline.store import Store
from training.autoencoder import Autoencoder
from training.checkpoint import Checkpoints
from training.dataset import Spectrograms
from training.initialisation import start_as_pca
from training.params import AutoencoderSection, TrainSection
from training.progress import Epoch, Progress
from training.step import Errors, SynchronousStep


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


def train_worker(config: dict[str, Any]) -> None:
    """Run one of Ray Train's workers; `config["job"]` is the `Job`."""
    context = ray.train.get_context()
    run_worker(config["job"], context.get_world_rank(), context.get_world_size())


def run_worker(job: Job, rank: int, num_workers: int, report: Callable[[Epoch], None] | None = None) -> None:
    """Train until the job is finished, or its error is no longer finite, together with the other workers.

    Parameters
    ----------
    job : Job
    rank, num_workers : int
        Which of how many this is. With several, `TF_CONFIG` must say where they are.
    report : callable, optional
        Told of each epoch that has ended, after its checkpoint is whole.
    """
    settings = job.train
    strategy = join(settings.seed, job.cpus_per_worker, num_workers)
    store = job.open_store()
    train = Spectrograms(store, "train", settings.target_shape)
    validation = Spectrograms(store, "validation", settings.target_shape)
    steps_per_epoch = len(train) // settings.global_batch_size
    with strategy.scope():
        autoencoder = Autoencoder(train.shape, **job.autoencoder.model_dump())
        autoencoder.compile(learning_rate_schedule(settings, steps_per_epoch))
        step = SynchronousStep(
            autoencoder.model, autoencoder.optimizer, strategy, autoencoder.architecture.beta, settings.seed
        )
        checkpoints = Checkpoints(job.checkpoints)
        progress = checkpoints.resume(autoencoder)
        if not progress.epoch:
            if rank == 0:
                initialise(autoencoder, train, settings)
            step.share_weights(is_source=rank == 0)
    while not progress.is_finished(settings.epochs, settings.patience):
        started = time.monotonic()
        slices = train.training_slices(progress.epoch, settings.seed, settings.global_batch_size, rank, num_workers)
        trained = step.train_epoch(slices)
        samples_per_s = steps_per_epoch * settings.global_batch_size / (time.monotonic() - started)
        validated = step.evaluate(validation.evaluation_slices(rank=rank, num_workers=num_workers))
        if not math.isfinite(step.loss(trained) + step.loss(validated)):
            return  # the driver sees that the last epoch left no checkpoint; another try would end the same way
        progress = Progress((*progress.history, _epoch(progress, step, trained, validated, samples_per_s)))
        if rank == 0:
            checkpoints.save(autoencoder, progress)
        if report:
            report(progress.history[-1])


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
