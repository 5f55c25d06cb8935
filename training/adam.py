"""Adam as Keras has it, each weight's update as one operation of TensorFlow. Keras and TensorFlow only."""

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("generative_music")
class Adam(keras.optimizers.Adam):  # type: ignore[misc]
    """`keras.optimizers.Adam`, with the same state and, but for rounding, the same numbers.

    Keras writes an update as a dozen operations, each of which goes through all of a weight's numbers and makes as
    many new ones.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Move a variable, and the moments that belong to it."""
        assert not self.amsgrad
        place = self._get_variable_index(variable)
        # Not `tf.cast`, which takes a number for a float32.
        beta_1, beta_2, epsilon = (
            tf.constant(each, variable.dtype) for each in (self.beta_1, self.beta_2, self.epsilon)
        )
        step = tf.cast(self.iterations + 1, variable.dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[place].value.handle,
            v=self._velocities[place].value.handle,
            beta1_power=beta_1**step,
            beta2_power=beta_2**step,
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=beta_1,
            beta2=beta_2,
            epsilon=epsilon,
            grad=tf.cast(gradient, variable.dtype),
        )
