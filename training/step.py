"""The synchronous step: what one replica does with its slice of a global batch. No ray, no mlflow, no files.

Keras' own `fit` does not run under `MultiWorkerMirroredStrategy`; this does, and with one replica it is an ordinary
training step. Every replica scales its loss by the number of replicas and gradients are summed, so N workers with
slices of a batch take the step that one worker takes with the whole batch.
"""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray


class SynchronousStep:
    """Trains and evaluates a model together with the other replicas of its strategy.

    Parameters
    ----------
    model : keras.Model
        Whose target is its input; built inside the scope of the strategy when there are several replicas.
    optimizer : keras.optimizers.Optimizer
        Made in the same scope.
    strategy : tf.distribute.Strategy, optional
        By default that of one replica.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, strategy: Any = None) -> None:
        self._strategy = strategy or tf.distribute.get_strategy()
        self._replicas = self._strategy.num_replicas_in_sync
        self._model = model
        self._optimizer = optimizer
        with self._strategy.scope():
            if not optimizer.built:
                optimizer.build(model.trainable_variables)
        row = tf.TensorSpec(model.input.shape, model.compute_dtype)
        self._train = tf.function(self._train_on_slice, input_signature=[row])
        self._sum = tf.function(self._sum_over_replicas)
        self._sum_all = tf.function(lambda values: [self._sum_over_replicas(value) for value in values])
        self._square = tf.function(self._squared_error, input_signature=[row])

    @property
    def learning_rate(self) -> float:
        """The learning rate that the next step would take."""
        return float(self._optimizer.learning_rate)

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
            _, gradients = self._differentiate(rows)
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)

        summed_gradients = tf.function(lambda rows: self._strategy.run(summed, args=(rows,)))(x)
        return [np.asarray(gradient) for gradient in summed_gradients]

    def train_epoch(self, slices: Iterable[NDArray[np.floating[Any]]]) -> float:
        """Take a step with each slice, and return the mean squared error over the epoch and all replicas.

        Parameters
        ----------
        slices : iterable of ndarray, shape (global_batch_size / replicas, n_bins, n_frames, 1)
            This replica's share of each global batch; every replica has equally many.
        """
        losses = [self._train(x) for x in slices]
        return self._mean_over_replicas(float(np.sum(losses, dtype=np.float64)), len(losses))

    def evaluate(self, slices: Iterable[NDArray[np.floating[Any]]]) -> float:
        """Return the mean squared error over the slices of all replicas, which may differ in number and size."""
        total, count = 0.0, 0
        for x in slices:
            total += float(self._square(x))
            count += x.size
        return self._mean_over_replicas(total, count)

    def _train_on_slice(self, x: Any) -> Any:
        def step(rows: Any) -> Any:
            loss, gradients = self._differentiate(rows)
            # Keras sums the gradients over replicas before it applies them.
            self._optimizer.apply_gradients(zip(gradients, self._model.trainable_variables, strict=True))
            return loss * self._replicas

        return self._strategy.experimental_local_results(self._strategy.run(step, args=(x,)))[0]

    def _differentiate(self, x: Any) -> tuple[Any, Any]:
        """Return this replica's share of the loss and of its gradients."""
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self._model(x, training=True) - x)) / self._replicas
        return loss, tape.gradient(loss, self._model.trainable_variables)

    def _squared_error(self, x: Any) -> Any:
        difference = self._model(x, training=False) - x
        return tf.reduce_sum(tf.cast(tf.reduce_sum(tf.square(difference), axis=[1, 2, 3]), tf.float64))

    def _mean_over_replicas(self, total: float, count: int) -> float:
        """Return the sum of totals over the sum of counts, in double."""
        total, count = np.asarray(self._sum(tf.constant([total, count], tf.float64)))
        return float(total / count)

    def _sum_over_replicas(self, values: Any) -> Any:
        local = self._strategy.run(tf.identity, args=(values,))
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, local, axis=None)
