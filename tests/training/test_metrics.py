import numpy as np
import pyarrow as pa
import pytest

from pipeline.artifact import TABLE_SCHEMA
from pipeline.store import Saver, Store
from training.dataset import Spectrograms
from training.metrics import LinearAutoencoder, mean_predictor, mean_squared_error, mean_squared_error_by_bin

SHAPE = (6, 5)


@pytest.fixture
def make_spectrograms(tmp_path):
    """Return a function that keeps rows (n, n_bins, n_frames) in a store, all of them to train on."""

    def make(rows):
        saver = Saver(tmp_path / "spectrograms", tmp_path / "table.parquet")
        saver.prepare()
        shard = saver.save_shard("0", [rows])
        columns = {field.name: [None] * len(rows) for field in TABLE_SCHEMA}
        columns |= {"shard": [0] * len(rows), "row": range(len(rows)), "split": ["train"] * len(rows)}
        saver.finish([shard], pa.table(columns, schema=TABLE_SCHEMA), rows.shape[1:], {}, {})
        return Spectrograms(Store(saver.folder, saver.table_path), "train")

    return make


def of_rank(rng, n_rows, rank):
    """Return rows that are a mean and `rank` patterns."""
    x = rng.normal(size=(n_rows, rank)) @ rng.normal(size=(rank, np.prod(SHAPE))) + rng.normal(size=np.prod(SHAPE))
    return x.reshape(n_rows, *SHAPE).astype(np.float32)


def test_mean_squared_error_is_that_of_a_loop(rng):
    x, x_hat = rng.normal(size=(2, 4, *SHAPE, 1)).astype(np.float32)
    expected = []
    for one, other in zip(x.tolist(), x_hat.tolist(), strict=True):
        total = 0.0
        for one_line, other_line in zip(one, other, strict=True):
            for (a,), (b,) in zip(one_line, other_line, strict=True):
                total += (a - b) ** 2
        expected.append(total / np.prod(SHAPE))
    found = mean_squared_error(x, x_hat)

    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_mean_squared_error_does_not_lose_small_terms():
    """In single precision a million small squares beside a large one would be rounded away."""
    x = np.full((1, 1_000_001), 1e-4, dtype=np.float32)
    x[0, 0] = 16.0
    expected = (256 + 1e6 * float(np.float32(1e-4)) ** 2) / 1_000_001

    assert mean_squared_error(x, np.zeros_like(x))[0] == pytest.approx(expected, rel=1e-9)


def test_mean_squared_error_by_bin_is_that_of_each_line(rng):
    x, x_hat = rng.normal(size=(2, 4, *SHAPE, 1)).astype(np.float32)
    found = mean_squared_error_by_bin(x, x_hat)

    for bin_ in range(SHAPE[0]):
        np.testing.assert_allclose(found[:, bin_], mean_squared_error(x[:, bin_], x_hat[:, bin_]), rtol=1e-6)
    np.testing.assert_allclose(found.mean(axis=1), mean_squared_error(x, x_hat), rtol=1e-6)


def test_mean_squared_error_against_one_for_all(rng):
    x = rng.normal(size=(4, *SHAPE)).astype(np.float32)
    mean = rng.normal(size=SHAPE).astype(np.float32)

    np.testing.assert_allclose(
        mean_squared_error(x, np.broadcast_to(mean, x.shape)),
        ((np.float64(x) - mean) ** 2).mean(axis=(1, 2)),
        rtol=1e-6,
    )


def test_mean_predictor_is_the_mean(make_spectrograms, rng):
    rows = rng.uniform(size=(150, *SHAPE)).astype(np.float32)
    mean = mean_predictor(make_spectrograms(rows))

    assert mean.shape == (*SHAPE, 1)
    np.testing.assert_allclose(mean[..., 0], rows.mean(axis=0, dtype=np.float64), rtol=1e-6)


def test_no_constant_predicts_the_training_set_better(make_spectrograms, rng):
    rows = rng.uniform(size=(50, *SHAPE)).astype(np.float32)
    mean = mean_predictor(make_spectrograms(rows))[..., 0]
    error = mean_squared_error(rows, np.broadcast_to(mean, rows.shape)).mean()

    for _ in range(5):
        other = mean + rng.normal(scale=0.05, size=SHAPE).astype(np.float32)
        assert mean_squared_error(rows, np.broadcast_to(other, rows.shape)).mean() > error


@pytest.mark.parametrize(("rank", "n_components"), [(1, 1), (3, 3), (3, 8), (7, 10)])
def test_pca_reconstructs_data_of_its_rank(make_spectrograms, rng, rank, n_components):
    rows = of_rank(rng, 60, rank)
    linear = LinearAutoencoder(make_spectrograms(rows[:40]), n_components, seed=0)

    assert linear.n_components == n_components
    np.testing.assert_allclose(linear.reconstruct(rows[..., None])[..., 0], rows, atol=2e-5)


def test_pca_is_the_best_of_its_size(make_spectrograms, rng):
    """Its error on what it was fitted on is what singular values leave over (Eckart and Young)."""
    rows = (of_rank(rng, 60, 4) + 0.3 * rng.normal(size=(60, *SHAPE))).astype(np.float32)
    singular_values = np.linalg.svd(rows.reshape(60, -1) - rows.reshape(60, -1).mean(axis=0), compute_uv=False)
    linear = LinearAutoencoder(make_spectrograms(rows), 4, seed=0)
    found = mean_squared_error(rows, linear.reconstruct(rows)).mean()

    assert found == pytest.approx(np.sum(singular_values[4:] ** 2) / rows.size, rel=1e-4)


def test_pca_decodes_what_it_encodes(make_spectrograms, rng):
    rows = of_rank(rng, 60, 5)[..., None]
    linear = LinearAutoencoder(make_spectrograms(rows[..., 0]), 3, seed=0)
    z = linear.encode(rows)

    assert z.shape == (60, 3)
    np.testing.assert_array_equal(linear.decode(z, rows.shape[1:]), linear.reconstruct(rows))
    # Components are those of the data, uncorrelated and in the order of their variance.
    covariance = np.cov(z.T)
    np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0, atol=1e-3 * covariance[0, 0])
    assert (np.diff(np.diag(covariance)) < 0).all()


def test_pca_keeps_shape_and_type(make_spectrograms, rng):
    rows = of_rank(rng, 30, 2)
    x_hat = LinearAutoencoder(make_spectrograms(rows), 2, seed=0).reconstruct(rows[:4, ..., None])

    assert x_hat.shape == (4, *SHAPE, 1)
    assert x_hat.dtype == np.float32


@pytest.mark.parametrize(("n_rows", "n_components"), [(5, 5), (100, 30)])
def test_pca_has_at_most_as_many_components_as_there_are_numbers(make_spectrograms, rng, n_rows, n_components):
    rows = rng.uniform(size=(n_rows, *SHAPE)).astype(np.float32)
    linear = LinearAutoencoder(make_spectrograms(rows), 128, seed=0)

    assert linear.n_components == n_components
    np.testing.assert_allclose(linear.reconstruct(rows), rows, atol=1e-5)


def test_pca_follows_from_its_seed(make_spectrograms, rng, monkeypatch):
    """Of more rows than it may use, the seed says which."""
    monkeypatch.setattr("training.metrics.FITTED_ROWS", 20)
    rows = rng.uniform(size=(100, *SHAPE)).astype(np.float32)
    spectrograms = make_spectrograms(rows)
    once, again, other = (LinearAutoencoder(spectrograms, 3, seed).reconstruct(rows) for seed in (1, 1, 2))

    np.testing.assert_array_equal(once, again)
    assert np.abs(once - other).max() > 0.01
