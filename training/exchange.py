"""Which gradients replicas sum while they still compute others. TensorFlow only.

Nearly all bytes of a network are in a few kernels. The gradient of such a one sets off as soon as it is known, alone
and without being copied into one piece with all others; a turn of its own for each of the small ones would cost more
than it saves.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import tensorflow as tf

_LARGE_BYTES = 1 << 20

_begun: ContextVar[set[int] | None] = ContextVar("begun", default=None)


@contextmanager
def early_sums() -> Iterator[set[int]]:
    """Let gradients of large kernels be sums over replicas already, where layers are called meanwhile in this thread.

    Yields
    ------
    set of int
        The `id` of each weight of which that is so, once its layer has been called.
    """
    begun: set[int] = set()
    token = _begun.set(begun)
    try:
        yield begun
    finally:
        _begun.reset(token)


def sum_early(kernel: Any) -> Any:
    """Return the value of a layer's kernel, whose gradient may be summed over replicas as soon as it is known."""
    value, begun, context = tf.convert_to_tensor(kernel), _begun.get(), tf.distribute.get_replica_context()
    if begun is None or context is None or context.num_replicas_in_sync == 1:
        return value
    if value.shape.num_elements() * value.dtype.size < _LARGE_BYTES:
        return value
    begun.add(id(kernel))
    return _with_summed_gradient(value)


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _with_summed_gradient(value: Any) -> Any:
    def sum_over_replicas(gradient: Any) -> Any:
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradient)

    return tf.identity(value), sum_over_replicas
