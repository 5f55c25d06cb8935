"""What workers do in processes of their own."""

import os
import signal

import keras
import numpy as np
import tensorflow as tf

from training import exchange
from training.adam import Adam
from training.autoencoder import Autoencoder
from training.dataset import Spectrograms
from training.loop import STOPPED, Orders, join, run_worker
from training.network import SynchronisedBatchNormalization
from training.step import SynchronousStep

ARCHITECTURE = {"conv_filters": (6, 6), "conv_kernels": (3, 3), "conv_strides": (2, (2, 1)), "latent_space_dim": 5}
SHAPE = (8, 8, 1)
GLOBAL_BATCH_SIZE = 8
# The last has convolutions without overlap, which XLA compiles where there is one worker, and every kernel's gradient
# summed as soon as it is known, for which a kernel has to be large elsewhere.
KINDS = ("deterministic", "variational", "patches")


def use(dtype):
    """Let Keras make networks of a type: the policy says what layers compute in, the other what joins them."""
    keras.config.set_floatx(dtype)
    keras.config.set_dtype_policy(dtype)


def measure_promise(path, rank, num_workers):
    """Measure everything that must not depend on the number of workers, and write it as `.npz`."""
    strategy = join(seed=0, cpus=1, num_workers=num_workers)
    found = {}
    use("float64")
    for kind in KINDS:
        found |= {f"{kind} {name}": values for name, values in _train_in_double(strategy, rank, kind).items()}
    _normalise(found, strategy, rank, SynchronisedBatchNormalization(momentum=0.9), "ours")
    _normalise(found, strategy, rank, keras.layers.BatchNormalization(momentum=0.9, synchronized=True), "keras")
    _normalise(found, strategy, rank, keras.layers.BatchNormalization(momentum=0.9), "plain")
    use("float32")
    for kind in KINDS:
        found |= {f"{kind} {name}": values for name, values in _train_in_single(strategy, rank, kind).items()}
    _normalise_far_from_zero(found, strategy, rank)
    np.savez(f"{path}/{rank}-of-{num_workers}.npz", **found)


def _batches(strategy, rank, number, dtype):
    """Return this rank's slices of some global batches of structured noise."""
    rng = np.random.default_rng(3)
    latent = rng.normal(size=(number, GLOBAL_BATCH_SIZE, 3))
    x = 0.5 + 0.2 * np.tanh(latent @ rng.normal(size=(3, 64))) + 0.02 * rng.normal(size=(number, GLOBAL_BATCH_SIZE, 64))
    size = GLOBAL_BATCH_SIZE // strategy.num_replicas_in_sync
    return x.reshape(number, GLOBAL_BATCH_SIZE, *SHAPE)[:, rank * size : (rank + 1) * size].astype(dtype)


def _build(strategy, optimizer, kind):
    keras.utils.set_random_seed(5)
    exchange._LARGE_BYTES = 1 if kind == "patches" else 1 << 20
    architecture = ARCHITECTURE | {"variational": kind == "variational"}
    if kind == "patches":
        architecture["conv_kernels"] = ARCHITECTURE["conv_strides"]
    with strategy.scope():
        autoencoder = Autoencoder(SHAPE, **architecture)
        return autoencoder, SynchronousStep(autoencoder.model, optimizer(), strategy, beta=0.05, seed=6)


def _numbers(errors):
    """Return the numbers of some errors as an array."""
    return np.array([[value for value in each if value is not None] for each in errors])


def _train_in_double(strategy, rank, kind):
    x = _batches(strategy, rank, 6, np.float64)
    autoencoder, step = _build(strategy, lambda: keras.optimizers.SGD(0.1), kind)
    names = [variable.path for variable in autoencoder.model.trainable_variables]
    gradients = step.gradients(x[0])
    found = {"early": _count_early(strategy, autoencoder)}
    found |= {f"gradient {name}": gradient for name, gradient in zip(names, gradients, strict=True)}
    found["sgd losses"] = _numbers(step.train_epoch(x[np.roll(np.arange(6), epoch)]) for epoch in range(3))
    found |= {f"sgd weight {variable.path}": np.asarray(variable) for variable in autoencoder.model.variables}
    found["sgd evaluation"] = _numbers([step.evaluate(x)])
    for variable in autoencoder.model.variables:
        variable.assign(np.random.default_rng(rank).normal(size=variable.shape))
    step.share_weights(is_source=rank == 0)
    found["shared"] = np.concatenate([np.ravel(variable) for variable in autoencoder.model.variables])
    found["drawn"] = np.concatenate(
        [np.random.default_rng(rank).normal(size=variable.shape).ravel() for variable in autoencoder.model.variables]
    )
    return found


def _count_early(strategy, autoencoder):
    """Return how many gradients are summed over replicas as soon as each is known."""
    counted = []

    def call():
        with exchange.early_sums() as begun:
            autoencoder.encoder(tf.zeros((1, *SHAPE), tf.float64))
            autoencoder.decoder(tf.zeros((1, ARCHITECTURE["latent_space_dim"]), tf.float64))
        counted.append(len(begun))

    tf.function(lambda: strategy.run(call))()
    return counted


def _train_in_single(strategy, rank, kind):
    x = _batches(strategy, rank, 20, np.float32)
    autoencoder, step = _build(strategy, lambda: Adam(1e-3), kind)
    found = {"adam losses": _numbers(step.train_epoch([each]) for each in x)}
    found |= {f"adam weight {variable.path}": np.asarray(variable) for variable in autoencoder.model.variables}
    found["adam learning rate"] = step.learning_rate
    found["adam evaluation"] = _numbers([step.evaluate(x)])
    return found


def _normalise(found, strategy, rank, layer, name):
    """Record what a layer of batch normalisation returns for a batch, its gradients, and its moving statistics."""
    x = _batches(strategy, rank, 1, np.float64)[0]
    weight = np.random.default_rng(4).normal(size=x.shape[1:])
    with strategy.scope():
        layer.build((None, *x.shape[1:]))

    def step(rows):
        with tf.GradientTape() as tape:
            tape.watch(rows)
            y = layer(rows, training=True)
            loss = tf.reduce_sum(y**3 * weight)
        gradients = tape.gradient(loss, [rows, *layer.trainable_variables])
        context = tf.distribute.get_replica_context()
        return y, gradients[0], *context.all_reduce(tf.distribute.ReduceOp.SUM, gradients[1:])

    outputs = tf.function(lambda rows: strategy.run(step, args=(rows,)))(tf.constant(x))
    names = ["y", "x gradient", "gamma gradient", "beta gradient"]
    found |= {f"{name} {each}": np.asarray(output) for each, output in zip(names, outputs, strict=True)}
    found |= {f"{name} moving mean": np.asarray(layer.moving_mean)}
    found |= {f"{name} moving variance": np.asarray(layer.moving_variance)}


def _normalise_far_from_zero(found, strategy, rank):
    """Record the moments of numbers whose mean is a hundred deviations from zero."""
    x = 100 + np.random.default_rng(6).normal(size=(8, 8, 8, 3)).astype(np.float32)
    size = len(x) // strategy.num_replicas_in_sync
    with strategy.scope():
        layer = SynchronisedBatchNormalization(momentum=0.0)
        layer.build(x.shape)
    step = tf.function(lambda rows: strategy.run(lambda each: layer(each, training=True), args=(rows,)))
    step(tf.constant(x[rank * size : (rank + 1) * size]))
    found |= {"offset mean": np.asarray(layer.moving_mean), "offset variance": np.asarray(layer.moving_variance)}
    found["offset mean in double"] = x.mean(axis=(0, 1, 2), dtype=np.float64)
    found["offset variance in double"] = np.float64(x).var(axis=(0, 1, 2))


def train_and_die(job, rank, num_workers, look=None):
    """Train until the middle of the third epoch, and be killed there."""
    slices_of = Spectrograms.training_slices

    def slices_to_the_end(self, epoch, *arguments):
        for number, x in enumerate(slices_of(self, epoch, *arguments)):
            if (epoch, number) == (2, 2):
                os.kill(os.getpid(), signal.SIGKILL)
            yield x

    Spectrograms.training_slices = slices_to_the_end
    run_worker(job, rank, num_workers, look=look)


def save_and_die(job, rank, num_workers):
    """Do what `train_and_die` does, and leave a checkpoint after every step."""
    train_and_die(job, rank, num_workers, look=lambda step_s, unsaved_s: Orders(steps=1, save=True))


def stop_after_seven_steps(job, rank, num_workers):
    """Train until orders are to stop, which they are at the third look, after seven steps."""
    looks = iter([Orders(steps=4), Orders(steps=2, save=True), Orders(steps=1, stop=True)])
    assert run_worker(job, rank, num_workers, look=lambda step_s, unsaved_s: next(looks)) == STOPPED
