"""The synchronous step: what one replica does with its slice of a global batch. No ray, no mlflow, no files.

Keras' own `fit` does not run under `MultiWorkerMirroredStrategy`; this does, and with one replica it is an ordinary
training step. Every replica scales its loss by the number of replicas and gradients are summed, so N workers with
slices of a batch take the step that one worker takes with the whole batch. The noise of a variational model follows
from the seed, the number of the step and the row of the global batch, so that the same holds for it.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from training.exchange import early_sums
from training.layers import Precision, has_overlap, multiply_in


class Errors(NamedTuple):
    """What a model got wrong, over all rows.

    Attributes
    ----------
    mse : float
        Mean squared error of the values.
    kl : float, optional
        Mean KL divergence of a row in nats; None where the model is not variational.
    """

    mse: float
    kl: float | None = None


class SynchronousStep:
    """Trains and evaluates a model together with the other replicas of its strategy.

    Parameters
    ----------
    model : keras.Model
        Whose target is its input; a variational one has a second input, noise, and a second output, KL divergences.
        Built inside the scope of the strategy when there are several replicas.
    optimizer : keras.optimizers.Optimizer
        Made in the same scope.
    strategy : tf.distribute.Strategy, optional
        By default that of one replica.
    beta : float
        Weight of the KL divergence in nats, divided by the number of values in a row, beside the mean squared error.
    seed : int
        Of the noise.
    compiled : bool, optional
        Whether XLA makes few kernels of a training step; by default where there is one replica and that pays: on a
        GPU, and where all that is computed are matrix products.
    precision : {'float32', 'bfloat16'}
        Of the products in a training step, as in `multiply_in`. Evaluation is always that of the model as it is saved.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        strategy: Any = None,
        beta: float = 0.0,
        seed: int = 0,
        compiled: bool | None = None,
        precision: Precision = "float32",
    ) -> None:
        self._strategy = strategy or tf.distribute.get_strategy()
        self._replicas = self._strategy.num_replicas_in_sync
        self._model = model
        self._is_variational = len(model.inputs) > 1
        self._kl_weight = beta / math.prod(model.inputs[0].shape[1:])
        self._seed = seed
        self._precision: Precision = precision
        self._optimizer = optimizer
        with self._strategy.scope():
            if not optimizer.built:
                optimizer.build(model.trainable_variables)
        row = tf.TensorSpec(model.inputs[0].shape, model.compute_dtype)
        if compiled is None:
            # On a GPU a step is a hundred small kernels, each of which takes longer to start than to run. On processors
            # convolutions that overlap take XLA longer. The sums over several replicas it cannot compile.
            pays = bool(tf.config.list_logical_devices("GPU")) or not has_overlap(model)
            compiled = self._replicas == 1 and pays
        self._learn = tf.function(self._learn_from, jit_compile=True) if compiled else self._learn_from
        self._train = tf.function(self._train_on_slice, input_signature=[row])
        self._sum = tf.function(self._sum_over_replicas)
        self._sum_all = tf.function(lambda values: [self._sum_over_replicas(value) for value in values])
        self._measure = tf.function(self._sums_of_errors, input_signature=[row])

    @property
    def learning_rate(self) -> float:
        """The learning rate that the next step would take."""
        # As an array first: what is constant is, with several replicas, a variable of which each has one.
        return float(np.asarray(self._optimizer.learning_rate))

    def loss(self, errors: Errors) -> float:
        """Return what training minimises, for these errors."""
        return errors.mse if errors.kl is None else errors.mse + self._kl_weight * errors.kl

    def share_weights(self, is_source: bool) -> None:
        """Give every replica the weights of the one that says it is the source."""
        if self._replicas == 1:
            return
        variables = self._model.variables
        # Sums of one and zeros, which are exact.
        values = [tf.constant(np.asarray(variable)) if is_source else tf.zeros_like(variable) for variable in variables]
        for variable, value in zip(variables, self._sum_all(values), strict=True):
            variable.assign(value)

    def gradients(self, x: NDArray[np.floating[Any]]) -> list[NDArray[np.floating[Any]]]:
        """Return the global batch's gradients from this replica's slice of it, without taking a step.

        As in a step, batch normalisation's moving statistics move.
        """

        def summed(rows: Any) -> Any:
            return self._differentiate(rows, self._noise(rows))[1]

        summed_gradients = tf.function(lambda rows: self._strategy.run(summed, args=(rows,)))(x)
        return [np.asarray(gradient) for gradient in summed_gradients]

    def train_epoch(self, slices: Iterable[NDArray[np.floating[Any]]]) -> Errors:
        """Take a step with each slice, and return the errors over the epoch and all replicas.

        Parameters
        ----------
        slices : iterable of ndarray, shape (global_batch_size / replicas, n_bins, n_frames, 1)
            This replica's share of each global batch; every replica has equally many.
        """
        errors = self.train(slices)
        return self.mean(errors.sum(axis=0), len(errors))

    def train(self, slices: Iterable[NDArray[np.floating[Any]]]) -> NDArray[np.float64]:
        """Take a step with each slice, and return this replica's errors of each, shape (n_steps, 1 or 2)."""
        return np.asarray([self._train(x) for x in slices], dtype=np.float64)

    def mean(self, sums: NDArray[np.float64], n_steps: int) -> Errors:
        """Return the errors over all replicas from this one's sums over that many steps."""
        return self._mean_over_replicas(sums, np.full_like(sums, n_steps))

    def gather(self, values: NDArray[np.float64], rank: int) -> NDArray[np.float64]:
        """Return the values of all replicas, shape (replicas, *values.shape); `rank` is this one's."""
        # Sums of one and zeros, which are exact.
        rows = np.zeros((self._replicas, *values.shape))
        rows[rank] = values
        return np.asarray(self._sum(tf.constant(rows, tf.float64)))

    def evaluate(self, slices: Iterable[NDArray[np.floating[Any]]]) -> Errors:
        """Return the errors over the slices of all replicas, which may differ in number and size.

        The latent vectors of a variational model are the means.
        """
        sums, counts = np.zeros(1 + self._is_variational), np.zeros(1 + self._is_variational)
        for x in slices:
            sums += np.asarray(self._measure(x))
            counts += [x.size, len(x)][: len(counts)]
        return self._mean_over_replicas(sums, counts)

    def _train_on_slice(self, x: Any) -> Any:
        # Apart, since XLA draws other numbers.
        noise = self._strategy.run(self._noise, args=(x,))
        return self._learn(x, noise)

    def _learn_from(self, x: Any, noise: Any) -> Any:
        """Take a step, and return this replica's errors before it."""
        errors, gradients = self._strategy.run(self._differentiate, args=(x, noise))
        # Not within `run`, where Keras would sum them over replicas once more.
        self._optimizer.apply_gradients(zip(gradients, self._model.trainable_variables, strict=True))
        return self._strategy.experimental_local_results(errors)[0]

    def _differentiate(self, x: Any, noise: Any) -> tuple[Any, Any]:
        """Return this replica's errors, and the gradients of the global batch."""
        with multiply_in(self._precision), early_sums() as begun, tf.GradientTape() as tape:
            x_hat, *divergences = self._apply(x, noise, training=True)
            errors = [tf.reduce_mean(tf.square(x_hat - x)), *(tf.reduce_mean(each) for each in divergences)]
            loss = errors[0] + self._kl_weight * errors[1] if divergences else errors[0]
            loss = loss / self._replicas
        gradients = tape.gradient(loss, self._model.trainable_variables)
        if self._replicas > 1:
            places = [place for place, each in enumerate(self._model.trainable_variables) if id(each) not in begun]
            context, late = tf.distribute.get_replica_context(), [gradients[place] for place in places]
            for place, summed in zip(places, context.all_reduce(tf.distribute.ReduceOp.SUM, late), strict=True):
                gradients[place] = summed
        return tf.stack(errors), gradients

    def _apply(self, x: Any, noise: Any, training: bool) -> Any:
        """Return reconstructions, and of a variational model divergences."""
        if self._is_variational:
            return self._model([x, noise], training=training)
        return [self._model(x, training=training)]

    def _noise(self, x: Any) -> Any:
        """Return this replica's rows of the noise for the global batch of the next step."""
        if not self._is_variational:
            return None
        context, n_rows = tf.distribute.get_replica_context(), tf.shape(x)[0]
        seed = tf.stack([tf.constant(self._seed, tf.int64), tf.cast(self._optimizer.iterations.value, tf.int64)])
        shape = [n_rows * self._replicas, self._model.inputs[1].shape[1]]
        # Philox counts, so that the numbers do not depend on how many threads draw them.
        noise = tf.random.stateless_normal(shape, seed, dtype=x.dtype, alg="philox")
        first = context.replica_id_in_sync_group * n_rows
        return noise[first : first + n_rows]

    def _sums_of_errors(self, x: Any) -> Any:
        """Return the sum of squared errors, and of a variational model that of the divergences."""
        noise = tf.zeros([tf.shape(x)[0], self._model.inputs[1].shape[1]], x.dtype) if self._is_variational else None
        x_hat, *divergences = self._apply(x, noise, training=False)
        of_rows = [tf.reduce_sum(tf.square(x_hat - x), axis=[1, 2, 3]), *divergences]
        return tf.stack([tf.reduce_sum(tf.cast(each, tf.float64)) for each in of_rows])

    def _mean_over_replicas(self, sums: Any, counts: Any) -> Errors:
        """Return the sums over all replicas, divided by those of the counts, in double."""
        sums, counts = np.asarray(self._sum(tf.constant([sums, counts], tf.float64)))
        return Errors(*(float(value) for value in sums / counts))

    def _sum_over_replicas(self, values: Any) -> Any:
        local = self._strategy.run(tf.identity, args=(values,))
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, local, axis=None)
