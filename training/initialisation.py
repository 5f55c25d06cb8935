"""Weights to start from: an untrained autoencoder that is already PCA.

A network whose convolutions cut the spectrogram into patches can say what PCA says, layer by layer, if every channel
has a partner of opposite sign: `relu(u) - relu(-u) = u`, and batch normalisation of `-u` is minus that of `u`. Training
then goes on from the best linear autoencoder of that size, instead of spending its time on the way there.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from pipeline.errors import ParameterError
from training.autoencoder import Autoencoder
from training.codes import FITTED_ROWS, choose_rows
from training.dataset import Spectrograms
from training.network import BATCH_NORM_EPSILON, Architecture

_SLICE = 256
# Of a component, beside the first one's, below which its latent value has less than unit variance.
_LEAST_VARIANCE = 1e-6


def check_starts_as_pca(architecture: Architecture) -> None:
    """Refuse a network that cannot pass patches on unchanged.

    Raises
    ------
    ParameterError
        Its first layer's patches overlap or leave gaps, a later one has a stride or an even kernel, there is only
        one layer, or the layers have no equal and even number of channels.
    """
    filters, kernels, strides = architecture.conv_filters, architecture.conv_kernels, architecture.conv_strides
    reasons = {
        "conv_filters must hold one even number for at least two layers": len(filters) > 1
        and len(set(filters)) == 1
        and filters[0] % 2 == 0,
        "the first of conv_kernels must be the first of conv_strides": kernels[0] == strides[0],
        "all other conv_strides must be 1": all(stride == (1, 1) for stride in strides[1:]),
        "all other conv_kernels must be odd": all(side % 2 for kernel in kernels[1:] for side in kernel),
    }
    for reason, holds in reasons.items():
        if not holds:
            raise ParameterError(
                f"train.initialisation='pca' with conv_filters={list(filters)}, conv_kernels={list(kernels)}, "
                f"conv_strides={list(strides)}: {reason}; or choose 'random'"
            )


def start_as_pca(autoencoder: Autoencoder, train: Spectrograms, seed: int) -> None:
    """Set an autoencoder's weights so that it reconstructs as PCA of the same latent size does.

    Latent values have unit variance. With fewer channels than twice the values of a patch, PCA is that of the best
    `filters / 2` components of the patches, which hold nearly all that a smaller latent vector can say.

    The mean of a variational autoencoder's latent vector is PCA's, and its variance the best one for that decoder.

    Parameters
    ----------
    autoencoder : Autoencoder
        Of an architecture that `check_starts_as_pca` accepts.
    train : Spectrograms
        At most 10,000 rows of it, chosen by the seed, are looked at.
    seed : int
    """
    architecture = autoencoder.architecture
    check_starts_as_pca(architecture)
    rows = choose_rows(len(train), FITTED_ROWS, seed)
    patches = _Patches(train, rows, architecture.conv_strides[0])
    basis = patches.principal_components(architecture.conv_filters[0] // 2)
    linear = _fit(patches.project(basis), architecture.latent_space_dim, seed)
    _set_encoder(autoencoder, basis, linear)
    _set_decoder(autoencoder, basis, linear)


@dataclass(frozen=True)
class _Patches:
    """Rows of a training set as patches that do not overlap."""

    train: Spectrograms
    rows: NDArray[np.int64]
    shape: tuple[int, int]

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """Yield slices (n, n_places, n_values)."""
        height, width = self.shape
        n_bins, n_frames, _ = self.train.shape
        for start in range(0, len(self.rows), _SLICE):
            x = self.train.rows(self.rows[start : start + _SLICE])
            x = x.reshape(len(x), n_bins // height, height, n_frames // width, width)
            yield x.transpose(0, 1, 3, 2, 4).reshape(len(x), -1, height * width)

    def principal_components(self, number: int) -> NDArray[np.float32]:
        """Return the basis that loses least of all patches: (n_values, n_components), orthonormal.

        With more components than a patch has values, the last are zeros.
        """
        n_values = self.shape[0] * self.shape[1]
        squares = np.zeros((n_values, n_values))
        for part in self:
            flat = part.reshape(-1, n_values)
            squares += flat.T @ flat
        _, vectors = np.linalg.eigh(squares)
        basis = np.zeros((n_values, number), dtype=np.float32)
        kept = min(number, n_values)
        basis[:, :kept] = vectors[:, ::-1][:, :kept]
        return basis

    def project(self, basis: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return all rows in a basis, (n, n_places, n_components)."""
        return np.concatenate([part @ basis for part in self])


@dataclass(frozen=True)
class _Linear:
    """PCA of projected patches `a`, (n, n_places, n_components).

    `z = sum(encode * a) + encode_bias` has unit variance, and `a_hat = z @ decode + mean`.
    """

    channel_mean: NDArray[np.float64]  # (n_components,)
    channel_variance: NDArray[np.float64]
    mean: NDArray[np.float64]  # (n_places, n_components)
    encode: NDArray[np.float64]  # (latent_dim, n_places, n_components)
    decode: NDArray[np.float64]
    variance_hat: NDArray[np.float64]  # of a_hat's channels


def _fit(a: NDArray[np.float32], latent_dim: int, seed: int) -> _Linear:
    mean = a.mean(axis=0, dtype=np.float64)
    centred = (a - mean.astype(np.float32)).reshape(len(a), -1)
    # Around their mean, n rows vary along n - 1 directions.
    n_found = max(1, min(latent_dim, len(centred) - 1, centred.shape[1]))
    pca = PCA(n_found, svd_solver="randomized", random_state=seed).fit(centred)
    variances = pca.explained_variance_.astype(np.float64)
    # Along a direction in which these rows hardly vary, others may, and would be blown up to any size.
    deviation = np.sqrt(np.maximum(variances, max(_LEAST_VARIANCE * variances[0], np.finfo(np.float32).tiny)))
    # Latent values that PCA has no rows for look somewhere, and say nothing yet.
    encode = np.random.default_rng(seed).normal(size=(latent_dim, centred.shape[1])) / np.sqrt(centred.shape[1])
    decode = np.zeros_like(encode)
    encode[:n_found] = pca.components_ / deviation[:, None]
    decode[:n_found] = pca.components_ * deviation[:, None]
    a_hat = pca.inverse_transform(pca.transform(centred)).reshape(a.shape) + mean.astype(np.float32)
    # Over rows and places, as batch normalisation has them.
    variance, variance_hat = (each.var(axis=(0, 1), dtype=np.float64) for each in (a, a_hat))
    shape = (latent_dim, *mean.shape)
    return _Linear(mean.mean(axis=0), variance, mean, encode.reshape(shape), decode.reshape(shape), variance_hat)


def _set_encoder(autoencoder: Autoencoder, basis: NDArray[np.float32], linear: _Linear) -> None:
    encoder, architecture = autoencoder.encoder, autoencoder.architecture
    n_layers = len(architecture.conv_filters)
    variances, scale = _chain(linear.channel_variance, n_layers)
    kernel = _paired(basis).reshape(*architecture.conv_kernels[0], 1, -1)
    means = [linear.channel_mean] + [np.zeros_like(scale)] * (n_layers - 1)
    for number in range(1, n_layers + 1):
        if number > 1:
            kernel = _pass_on(architecture.conv_kernels[number - 1], len(scale))
        encoder.get_layer(f"encoder_conv_{number}").set_weights([kernel])
        _set_normalisation(
            encoder.get_layer(f"encoder_bn_{number}"), means[number - 1], variances[number - 1], np.zeros_like(scale)
        )
    # What arrives is u = (a - channel_mean) / scale, so a = u * scale + channel_mean.
    weights = _paired(linear.encode * scale).reshape(len(linear.encode), -1).T
    bias = (linear.encode * (linear.channel_mean - linear.mean)).sum(axis=(1, 2))
    encoder.get_layer("encoder_output").set_weights([weights, bias])
    if architecture.variational:
        # Of the values' noise beta / 2, a latent value that moves the spectrogram by `decode` leaves this unknown.
        explained = (linear.decode**2).sum(axis=(1, 2)) / (architecture.beta / 2)
        autoencoder.model.get_layer("encoder_log_variance").set_weights([np.zeros_like(weights), -np.log1p(explained)])


def _set_decoder(autoencoder: Autoencoder, basis: NDArray[np.float32], linear: _Linear) -> None:
    decoder, architecture = autoencoder.decoder, autoencoder.architecture
    n_layers = len(architecture.conv_filters)
    unit = np.sqrt(linear.channel_variance + BATCH_NORM_EPSILON)
    weights = _paired(linear.decode / unit).reshape(len(linear.decode), -1)
    bias = _paired((linear.mean - linear.channel_mean) / unit).reshape(-1)
    decoder.get_layer("decoder_dense").set_weights([weights, bias])
    variances, scale = _chain(linear.variance_hat / unit**2, n_layers - 1)
    scale *= unit
    for place, number in enumerate(range(n_layers, 1, -1)):
        # The dense layer gives u and -u, and no ReLU has taken half of either.
        kernel = _pass_on(architecture.conv_kernels[number - 1], len(scale)) / (2 if place == 0 else 1)
        decoder.get_layer(f"decoder_conv_transpose_{number}").set_weights([kernel])
        # The last one brings back the mean that the first one of the encoder took away.
        beta = linear.channel_mean / scale if number == 2 else np.zeros_like(scale)
        _set_normalisation(decoder.get_layer(f"decoder_bn_{number}"), np.zeros_like(scale), variances[place], beta)
    kernel = _paired(basis * scale).reshape(*architecture.conv_kernels[0], 1, -1)
    decoder.get_layer("decoder_output").set_weights([kernel, np.zeros(1)])


def _chain(variance: NDArray[np.float64], number: int) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Return the variances that successive normalisations see, and what they divide by in all."""
    seen, scale = [], np.ones_like(variance)
    for _ in range(number):
        seen.append(variance)
        scale = scale * np.sqrt(variance + BATCH_NORM_EPSILON)
        variance = variance / (variance + BATCH_NORM_EPSILON)
    return seen, scale


def _paired(values: NDArray[Any]) -> NDArray[Any]:
    """Return values with their negatives after them, along the last axis: channels and partners."""
    return np.concatenate([values, -values], axis=-1)


def _pass_on(kernel: tuple[int, int], number: int) -> NDArray[Any]:
    """Return a kernel (height, width, channels, channels) that makes u and -u of relu(u) and relu(-u)."""
    weights = np.zeros((*kernel, 2 * number, 2 * number))
    identity = np.eye(number)
    weights[kernel[0] // 2, kernel[1] // 2] = np.block([[identity, -identity], [-identity, identity]])
    return weights


def _set_normalisation(
    layer: keras.layers.Layer, mean: NDArray[np.float64], variance: NDArray[np.float64], beta: NDArray[np.float64]
) -> None:
    """Give a batch normalisation the moments of what it will see, its scale 1 and its offset."""
    twice = np.concatenate([variance, variance])
    layer.set_weights([np.ones_like(twice), _paired(beta), _paired(mean), twice])
