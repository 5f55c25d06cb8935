"""A normalising flow of affine couplings (RealNVP: Dinh, Sohl-Dickstein and Bengio, 2017). NumPy only.

scikit-learn and Keras have none, TensorFlow Probability wants the legacy Keras, BayesFlow's would want TensorFlow where
sounds are drawn, and others PyTorch or JAX. A coupling's gradient is short, and a test compares it with differences.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

_HIDDEN = 64
# One coupling scales a value by exp(-2) to exp(2), so that none that was never seen comes back as infinity.
_BOUND = 2.0
# Training: Adam (Kingma and Ba, 2015) at its usual decays, in mini-batches of rows with some noise, which are the less
# easily learnt by heart, in float32; weights are averaged over some hundred steps.
_BATCH = 128
_NOISE = 0.3
_RATE = 5e-3
_DECAYS = 0.9, 0.999
_AVERAGING = 0.99


@dataclass(frozen=True)
class Flow:
    """A bijection of rows, made of couplings.

    Each coupling moves and scales one half of the values by what a small network makes of the other half; the next
    one has the halves exchanged, and then values are dealt out anew.

    Attributes
    ----------
    order : ndarray of int64, shape (n_couplings, n_dim)
        Of the values: those that a coupling keeps, n_dim // 2, then those that it changes.
    kernels_in : ndarray, shape (n_couplings, n_dim // 2, n_hidden)
    biases_in : ndarray, shape (n_couplings, n_hidden)
    kernels_out : ndarray, shape (n_couplings, *n_hidden, 2 * (n_dim - n_dim // 2))
        To the logarithms of the scales, then to the shifts.
    biases_out : ndarray, shape (n_couplings, 2 * (n_dim - n_dim // 2))
    """

    order: NDArray[np.int64]
    kernels_in: Array
    biases_in: Array
    kernels_out: Array
    biases_out: Array

    @classmethod
    def identity(cls, n_dim: int, n_couplings: int, rng: np.random.Generator) -> "Flow":
        """Return a flow that changes nothing yet, since nothing leaves its networks; `n_dim` is two or more."""
        order = np.empty((n_couplings, n_dim), dtype=np.int64)
        for each in range(n_couplings):
            order[each] = order[each - 1, ::-1] if each % 2 else rng.permutation(n_dim)
        n_kept = n_dim // 2
        return cls(
            order,
            rng.normal(size=(n_couplings, n_kept, _HIDDEN)) / np.sqrt(n_kept),
            np.zeros((n_couplings, _HIDDEN)),
            np.zeros((n_couplings, _HIDDEN, 2 * (n_dim - n_kept))),
            np.zeros((n_couplings, 2 * (n_dim - n_kept))),
        )

    @property
    def n_dim(self) -> int:
        """Values of a row."""
        return int(self.order.shape[1])

    def forward(self, x: Array) -> tuple[Array, Array]:
        """Return where rows (n, n_dim) go, and the logarithm of the volume's change there, (n,)."""
        y, log_volume = x.copy(), np.zeros(len(x), x.dtype)
        for each, (kept, changed) in enumerate(self._halves()):
            _, log_scale, shift = self._network(each, y[:, kept])
            y[:, changed] = (y[:, changed] + shift) * np.exp(log_scale)
            log_volume += log_scale.sum(axis=1)
        return y, log_volume

    def inverse(self, y: Array) -> Array:
        """Return the rows that `forward` brings to these."""
        x = y.copy()
        for each, (kept, changed) in reversed(list(enumerate(self._halves()))):
            _, log_scale, shift = self._network(each, x[:, kept])
            x[:, changed] = x[:, changed] * np.exp(-log_scale) - shift
        return x

    def log_likelihood(self, x: Array) -> NDArray[np.float64]:
        """Return the logarithm of the density at rows, (n,), in nats, when what leaves the flow is standard normal."""
        y, log_volume = self.forward(x)
        density: NDArray[np.float64] = log_volume - (y**2).sum(axis=1) / 2 - self.n_dim / 2 * np.log(2 * np.pi)
        return density

    def gradients(self, x: Array) -> dict[str, Array]:
        """Return how the mean of `-log_likelihood` over rows changes with each array of weights."""
        y, kept_of, steps = x.copy(), [], []
        for each, (kept, changed) in enumerate(self._halves()):
            kept_of.append(y[:, kept])
            hidden, log_scale, shift = self._network(each, kept_of[-1])
            y[:, changed] = (y[:, changed] + shift) * np.exp(log_scale)
            steps.append((hidden, log_scale, y[:, changed]))
        found = {name: np.empty_like(value) for name, value in self.weights().items()}
        back = y / len(x)
        for each, (kept, changed) in reversed(list(enumerate(self._halves()))):
            hidden, log_scale, moved = steps[each]
            to_shift = back[:, changed] * np.exp(log_scale)
            to_scale = (back[:, changed] * moved - 1 / len(x)) * (1 - (log_scale / _BOUND) ** 2)
            out = np.concatenate([to_scale, to_shift], axis=1)
            to_hidden = out @ self.kernels_out[each].T * (1 - hidden**2)
            found["kernels_out"][each], found["biases_out"][each] = hidden.T @ out, out.sum(axis=0)
            found["kernels_in"][each], found["biases_in"][each] = kept_of[each].T @ to_hidden, to_hidden.sum(axis=0)
            back[:, kept] += to_hidden @ self.kernels_in[each].T
            back[:, changed] = to_shift
        return found

    def weights(self) -> dict[str, Array]:
        """Return what is trained, by name."""
        return {name: value for name, value in vars(self).items() if name != "order"}

    def astype(self, dtype: type[np.floating[Any]]) -> "Flow":
        """Return a copy whose weights have another precision."""
        return Flow(self.order, **{name: value.astype(dtype) for name, value in self.weights().items()})

    def check(self, n_dim: int) -> None:
        """Refuse, by a ValueError, arrays that do not fit each other or rows of that many values."""
        n_couplings, n_hidden, n_kept = len(self.order), self.biases_in.shape[1:], n_dim // 2
        expected = {
            "order": (n_couplings, n_dim),
            "kernels_in": (n_couplings, n_kept, *n_hidden),
            "biases_in": (n_couplings, *n_hidden),
            "kernels_out": (n_couplings, *n_hidden, 2 * (n_dim - n_kept)),
            "biases_out": (n_couplings, 2 * (n_dim - n_kept)),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if value.shape != shape:
                raise ValueError(f"{name} has shape {value.shape}, expected {shape}")
            if name != "order" and (value.dtype != np.float64 or not np.isfinite(value).all()):
                raise ValueError(f"{name} holds what is no finite number")
        if self.order.dtype != np.int64 or (np.sort(self.order, axis=1) != np.arange(n_dim)).any():
            raise ValueError(f"order holds what is no order of {n_dim} values")

    def _halves(self) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        n_kept = self.n_dim // 2
        return [(order[:n_kept], order[n_kept:]) for order in self.order]

    def _network(self, each: int, kept: Array) -> tuple[Array, Array, Array]:
        """Return the hidden values of a coupling's network, the logarithms of its scales, and its shifts."""
        hidden = np.tanh(kept @ self.kernels_in[each] + self.biases_in[each])
        log_scale, shift = np.split(hidden @ self.kernels_out[each] + self.biases_out[each], 2, axis=1)
        return hidden, _BOUND * np.tanh(log_scale / _BOUND), shift


class FlowTraining:
    """A flow in training; more steps may follow any.

    Parameters
    ----------
    x : ndarray, shape (n, n_dim)
        Rows, white: of mean 0 and variance 1.
    n_couplings : int
    seed : int
        Of first weights, order, and noise.
    """

    def __init__(self, x: Array, n_couplings: int, seed: int) -> None:
        self._x, self._rng = x.astype(np.float32), np.random.default_rng(seed)
        self._flow = Flow.identity(x.shape[1], n_couplings, self._rng).astype(np.float32)
        weights = self._flow.weights()
        self._averages = {name: value.copy() for name, value in weights.items()}
        self._moments = {name: (np.zeros_like(value), np.zeros_like(value)) for name, value in weights.items()}
        self._n_steps = 0

    @property
    def flow(self) -> Flow:
        """The flow with the averages of its weights."""
        return Flow(self._flow.order, **self._averages).astype(np.float64)

    def run(self, n_steps: int) -> None:
        """Take some steps."""
        for _ in range(n_steps):
            self._n_steps += 1
            rows = self._x[self._rng.integers(len(self._x), size=min(_BATCH, len(self._x)))]
            gradients = self._flow.gradients(rows + _NOISE * self._rng.standard_normal(rows.shape, np.float32))
            for name, weights in self._flow.weights().items():
                np.subtract(weights, self._adam(name, gradients[name]), out=weights)
                self._averages[name] += (1 - _AVERAGING) * (weights - self._averages[name])

    def _adam(self, name: str, gradient: Array) -> Array:
        """Return the step of Adam for one array."""
        unbiased = []
        for average, value, decay in zip(self._moments[name], (gradient, gradient**2), _DECAYS, strict=True):
            np.add(average, (1 - decay) * (value - average), out=average)
            unbiased.append(average / (1 - decay**self._n_steps))
        step: Array = _RATE * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)
        return step
