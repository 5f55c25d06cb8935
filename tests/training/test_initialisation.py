import keras
import numpy as np
import pytest
from sklearn.decomposition import PCA

from pipeline.errors import ParameterError
from training.autoencoder import Autoencoder
from training.initialisation import check_starts_as_pca, start_as_pca
from training.step import SynchronousStep

SHAPE = (16, 8, 1)
# Patches of 4 x 2 = 8 values, so that 16 channels are all of them with their partners.
NETWORK = {"conv_filters": [16] * 3, "conv_kernels": [[4, 2], 3, 1], "conv_strides": [[4, 2], 1, 1]}


class Rows:
    """Rows in memory, as `Spectrograms` hands them out."""

    shape = SHAPE

    def __init__(self, x):
        self._x = x

    def __len__(self):
        return len(self._x)

    def rows(self, which):
        return self._x[which]


@pytest.fixture(scope="module")
def x():
    """Return 300 rows of some structure and noise, far from zero mean, one of their corners constant."""
    rng = np.random.default_rng(11)
    structure = np.tanh(rng.normal(size=(300, 12)) @ rng.normal(size=(12, 128))) * np.linspace(0.02, 0.3, 128)
    x = 0.4 + structure + 0.01 * rng.normal(size=(300, 128))
    return x.reshape(300, *SHAPE).astype(np.float32)


def pca_of(x, n_components):
    """Return the reconstructions and whitened components that PCA gives of rows."""
    flat = x.reshape(len(x), -1).astype(np.float64)
    pca = PCA(n_components, whiten=True, svd_solver="full").fit(flat)
    z = pca.transform(flat)
    return pca.inverse_transform(z).reshape(x.shape), z


def start(x, latent_space_dim, **changes):
    autoencoder = Autoencoder(SHAPE, **(NETWORK | changes), latent_space_dim=latent_space_dim)
    start_as_pca(autoencoder, Rows(x), seed=0)
    return autoencoder


def mse(x, x_hat):
    return float(np.mean((x - x_hat) ** 2, dtype=np.float64))


@pytest.mark.parametrize("n_layers", [2, 3, 4])
def test_it_reconstructs_as_pca_does(x, n_layers):
    layers = {"conv_filters": [16] * n_layers}
    layers |= {name: [[4, 2]] + [[1, 3]] * (n_layers - 1) for name in ("conv_kernels",)}
    layers |= {"conv_strides": [[4, 2]] + [1] * (n_layers - 1)}
    expected, z_expected = pca_of(x, 6)
    x_hat, z = start(x, 6, **layers).reconstruct(x)

    assert mse(x, expected) > 1e-5  # something is lost, so that both lose the same
    np.testing.assert_allclose(x_hat, expected, atol=2e-4)
    # Up to their signs, which PCA leaves open.
    np.testing.assert_allclose(np.abs(z), np.abs(z_expected), atol=5e-3)


def test_batches_in_training_see_what_it_expects(x):
    """Batch normalisation by a batch that is all rows is that by the moments that were set."""
    autoencoder = start(x, 6)
    np.testing.assert_allclose(
        np.asarray(autoencoder.model(x, training=True)), autoencoder.reconstruct(x)[0], atol=2e-4
    )


def test_fewer_channels_lose_no_more_than_their_patches_do(x):
    x_hat, _ = start(x, 6, conv_filters=[12] * 3).reconstruct(x)
    patches = x.reshape(300, 4, 4, 4, 2).transpose(0, 1, 3, 2, 4).reshape(300, 16, 8).astype(np.float64)
    lost = np.linalg.eigvalsh(np.einsum("npi,npj->ij", patches, patches))[: 8 - 6].sum() / x.size
    pca = mse(x, pca_of(x, 6)[0])

    assert pca < mse(x, x_hat) < pca + lost + 1e-5
    assert lost < 0.5 * pca  # so that the bound says something


def test_more_channels_than_patches_have_values_and_more_latent_values_than_rows(x):
    few = x[:5]
    autoencoder = start(few, 9, conv_filters=[20] * 3)
    x_hat, z = autoencoder.reconstruct(few)

    np.testing.assert_allclose(x_hat, few, atol=1e-3)  # five rows need four components
    assert np.isfinite(z).all()


def test_fewer_rows_than_latent_values_leave_room_for_other_rows(x):
    """Of n rows the n-th component has no variance, and what other rows have along it must not be blown up."""
    few, others = x[:40], x[40:]
    autoencoder = start(few, 60, conv_filters=[20] * 3)
    pca = PCA(39).fit(few.reshape(40, -1))
    x_hat = pca.inverse_transform(pca.transform(others.reshape(260, -1))).reshape(others.shape)
    expected = mse(others, x_hat)

    assert np.abs(autoencoder.encode(others)).max() < 100
    assert mse(others, autoencoder.reconstruct(others)[0]) < 1.05 * expected
    autoencoder.compile(2e-4)
    autoencoder.train(few, batch_size=20, num_epochs=2)
    assert mse(others, autoencoder.reconstruct(others)[0]) < 2 * expected


def test_training_goes_on_from_it(x):
    autoencoder = start(x, 6)
    autoencoder.compile(1e-3)
    before = mse(x, autoencoder.reconstruct(x)[0])
    autoencoder.train(x, batch_size=50, num_epochs=30)

    assert mse(x, autoencoder.reconstruct(x)[0]) < 0.97 * before  # no linear autoencoder is better than PCA


def test_a_variational_one_starts_as_pca_with_the_best_variances(x):
    """For a linear decoder W and noise s, those are the diagonal of what remains unknown: 1 / (1 + W'W / s)."""
    beta = 0.01
    autoencoder = start(x, 6, variational=True, beta=beta)
    expected, z_expected = pca_of(x, 6)
    x_hat, z = autoencoder.reconstruct(x)
    np.testing.assert_allclose(x_hat, expected, atol=2e-4)
    np.testing.assert_allclose(np.abs(z), np.abs(z_expected), atol=5e-3)

    decoded = autoencoder.decode(np.vstack([np.zeros(6), np.eye(6)]).astype(np.float32)).reshape(7, -1)
    variances = 1 / (1 + np.sum((decoded[1:] - decoded[0]) ** 2, axis=1) / (beta / 2))
    divergences = np.asarray(autoencoder.model([x, np.zeros_like(z)])[1])
    np.testing.assert_allclose(divergences, (z**2 + variances - 1 - np.log(variances)).sum(axis=1) / 2, rtol=2e-3)
    assert 0.01 < variances.min() < variances.max() < 0.5

    def loss(factor):
        """Return the loss with other variances, over several draws of the noise."""
        layer = autoencoder.model.get_layer("encoder_log_variance")
        layer.set_weights([layer.get_weights()[0], np.log(factor * variances)])
        noise = np.random.default_rng(2).normal(size=(4, *z.shape)).astype(np.float32)
        outputs = [autoencoder.model([x, each]) for each in noise]
        errors = np.mean([np.mean((x_hat - x) ** 2) for x_hat, _ in outputs])
        return errors + beta * np.mean(outputs[0][1]) / x[0].size

    assert loss(1.0) < min(loss(0.7), loss(1.4))


def test_it_follows_from_rows_and_seed(x):
    first, again = (start(x, 6, conv_filters=[10] * 3).model.get_weights() for _ in range(2))
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_replica_keeps_its_weights(x):
    model = start(x, 6).model
    before = model.get_weights()
    SynchronousStep(model, keras.optimizers.Adam()).share_weights(is_source=False)
    for one, other in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_filters": [15] * 3}, "conv_filters must hold one even number for at least two layers"),
        ({"conv_filters": [16, 16, 8]}, "conv_filters must hold one even number for at least two layers"),
        ({"conv_kernels": [3, 3, 1]}, "the first of conv_kernels must be the first of conv_strides"),
        ({"conv_strides": [[4, 2], 2, 1]}, "all other conv_strides must be 1"),
        ({"conv_kernels": [[4, 2], 2, 1]}, "all other conv_kernels must be odd"),
    ],
)
def test_a_network_that_cannot(changes, message):
    architecture = Autoencoder(SHAPE, **(NETWORK | changes), latent_space_dim=6).architecture
    with pytest.raises(ParameterError, match=rf"^train\.initialisation='pca' with .*: {message}; or choose 'random'$"):
        check_starts_as_pca(architecture)
