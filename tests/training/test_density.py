import dataclasses
import zipfile

import numpy as np
import pytest

from pipeline.errors import ModelError, ParameterError
from training.codes import Codes, choose_rows, encode
from training.dataset import Spectrograms
from training.density import DENSITY_FILE, Density

CENTRES = np.array([[16.0, 0, 0], [0, 16, 0], [0, 0, 16], [-16, -16, -16]])


def levels(n):
    """Return min_db and max_db (n,) of sounds that are all equally loud."""
    return np.full(n, -80.0), np.full(n, 0.0)


def clusters(rng, n=400):
    """Return points (n, 3) around four centres, each with a spread of 1."""
    return CENTRES[rng.integers(4, size=n)] + rng.normal(size=(n, 3))


@pytest.fixture
def correlated(rng):
    """Return z (n, 4), min_db, max_db (n,) that are jointly Gaussian, and the matrix that made them."""
    matrix = rng.normal(size=(6, 6)) * [1.0, 1.0, 3.0, 0.1, 2.0, 0.5]
    values = rng.normal(size=(4000, 6)) @ matrix + np.arange(6)
    return values[:, :4], values[:, 4] - 60 - np.abs(values[:, 5]), values[:, 4], matrix


def test_samples_of_a_gaussian_have_its_mean_and_covariance(correlated):
    z, _, max_db, matrix = correlated
    density = Density.fit(z, max_db - 60, max_db, seed=0)
    drawn = density.sample(40_000, seed=1)
    values = np.column_stack([drawn.z, drawn.max_db])
    expected = (matrix.T @ matrix)[:5, :5]
    scale = np.sqrt(np.diag(expected))

    np.testing.assert_allclose(values.mean(axis=0) / scale, np.arange(5) / scale, atol=0.06)
    # As correlations: latent values among each other, and with the level.
    np.testing.assert_allclose(np.cov(values.T) / np.outer(scale, scale), expected / np.outer(scale, scale), atol=0.06)
    assert np.abs(expected[4, :4] / scale[4] / scale[:4]).max() > 0.3


def test_samples_of_clusters_lie_in_them(rng):
    density = Density.fit(clusters(rng), *levels(400), seed=0)
    drawn = density.sample(2000, seed=1)
    distance = np.linalg.norm(drawn.z[:, None] - CENTRES, axis=2)

    assert len(density.weights) >= 4
    # Of three dimensions with a spread of 1, a ball of 5 holds all but 2e-5.
    assert (distance.min(axis=1) < 5).mean() > 0.99
    np.testing.assert_allclose(np.bincount(distance.argmin(axis=1)) / 2000, 0.25, atol=0.06)


def test_held_out_likelihood_decides_against_more_components_than_there_are(rng):
    """On the rows that it was fitted on, a mixture of 32 would be the likeliest."""
    density = Density.fit(rng.normal(size=(300, 4)), *levels(300), seed=0)

    assert len(density.weights) <= 2
    # Entropy of four normal values, which no density's likelihood exceeds but by chance; two levels are constant.
    assert density.log_likelihood(Codes(rng.normal(size=(4000, 4)), *levels(4000))).mean() < (
        density.held_out_log_likelihood + 0.5
    )


def test_as_many_full_covariances_as_there_are_shapes(rng):
    """Twelve needles of all directions, crossing each other: neither round components nor four shapes say as much."""
    needles = rng.normal(size=(12, 3)) * 3, rng.normal(size=(12, 3, 3)) * [6.0, 0.1, 0.1]
    which = rng.integers(12, size=1800)
    z = needles[0][which] + np.einsum("nj,nij->ni", rng.normal(size=(1800, 3)), needles[1][which])
    density = Density.fit(z, *levels(1800), seed=0)

    assert density.kind == ("full", 16)
    assert density.family_scores["mixture"] == density.scores["full", 16] == max(density.scores.values())
    assert density.family_scores["flow"] < density.held_out_log_likelihood
    assert density.family_scores["gaussian"] == max(density.scores[kind, 1] for kind in ("spherical", "diag", "tied"))


def test_groups_are_held_out_as_a_whole(rng):
    """Twenty copies of each of ten points are twenty tight clusters, unless a group is known by its copies."""
    points = rng.normal(size=(12, 3))
    z = np.repeat(points, 20, axis=0) + 1e-2 * rng.normal(size=(240, 3))
    groups = [str(each) for each in np.repeat(np.arange(12), 20)]
    blind = Density.fit(z, *levels(240), seed=0)
    seeing = Density.fit(z, *levels(240), seed=0, groups=groups)

    assert len(blind.weights) > len(seeing.weights)
    assert blind.held_out_log_likelihood > seeing.held_out_log_likelihood + 1


def test_the_likelihood_is_the_one_that_samples_have(rng):
    """A density integrates to one: mean of q / p under p, with q another density."""
    one = Density.fit(rng.normal(size=(500, 2)), rng.normal(-80, 1, 500), rng.normal(0, 1, 500), seed=0)
    one = dataclasses.replace(one, levels_db=np.array([[-1e3, -1e3], [1e3, 1e3]]))  # of which none is cut off
    other = dataclasses.replace(one, means=one.means + 0.3)
    drawn = one.sample(200_000, seed=3)
    ratio = np.exp(other.log_likelihood(drawn) - one.log_likelihood(drawn))

    assert ratio.mean() == pytest.approx(1.0, abs=0.02)
    assert ratio.std() > 0.1


@pytest.mark.parametrize("covariance_type", ["spherical", "diag", "tied", "full"])
def test_each_shape_of_covariance_fits_and_draws(rng, monkeypatch, covariance_type):
    monkeypatch.setattr("training.candidates.CANDIDATES", {covariance_type: (4,)})
    z = clusters(rng)
    density = Density.fit(z, *levels(400), seed=0)
    drawn = density.sample(20_000, seed=1)

    assert density.covariance_type == covariance_type
    assert len(density.weights) == 4
    # Whatever the components, all of them together have the mean and the variances of what they were fitted on.
    np.testing.assert_allclose(drawn.z.mean(axis=0), z.mean(axis=0), atol=0.3)
    np.testing.assert_allclose(drawn.z.std(axis=0), z.std(axis=0), rtol=0.05)


def banana(rng, n):
    """Return points (n, 3): two values along a parabola, and one beside them; no Gaussian is like that."""
    u = rng.normal(size=(n, 3))
    return np.column_stack([u[:, 0], u[:, 0] ** 2 + 0.3 * u[:, 1], u[:, 2]])


@pytest.fixture(scope="module")
def flowing():
    """Return a density that is a flow, since nothing else but a Gaussian was tried."""
    rng = np.random.default_rng(0)
    max_db = rng.normal(0, 8, 600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.candidates.CANDIDATES", {"spherical": (1,), "flow": (6,)})
        return Density.fit(banana(rng, 600), max_db - 60, max_db, seed=0)


def test_a_flow_is_chosen_where_it_says_most(flowing):
    assert flowing.kind == ("flow", 6)
    assert flowing.describe() == "a normalising flow (6 couplings)"
    assert flowing.family_scores == {"gaussian": flowing.scores["spherical", 1], "flow": flowing.scores["flow", 6]}
    assert flowing.scores["flow", 6] == flowing.held_out_log_likelihood > flowing.scores["spherical", 1] + 0.2

    drawn = flowing.sample(4000, seed=1)
    # Off the parabola by 0.3; points of the Gaussian of the same mean and covariance are by sqrt(2 + 2).
    assert np.std(drawn.z[:, 1] - drawn.z[:, 0] ** 2) < 1.2
    np.testing.assert_allclose(drawn.z.mean(axis=0), [0, 1, 0], atol=0.3)
    assert drawn.max_db.std() == pytest.approx(8, rel=0.2)


def test_the_likelihood_of_a_flow_is_the_one_that_its_samples_have(flowing):
    """With the same flow and another normal distribution before it, as for a mixture."""
    one = dataclasses.replace(flowing, levels_db=np.array([[-1e3, -1e3], [1e3, 1e3]]))
    # The level's range is constant: as drawn, it is one number.
    other = dataclasses.replace(one, means=one.means + 0.1)
    drawn = one.sample(20_000, seed=3)
    ratio = np.exp(other.log_likelihood(drawn) - one.log_likelihood(drawn))

    assert ratio.mean() == pytest.approx(1.0, abs=0.02)
    assert ratio.std() > 0.1


def test_likelihoods_are_those_of_codes_as_they_are(rng, monkeypatch):
    """In other units, ten times as small, the density is ten times as high, in each of three dimensions."""
    monkeypatch.setattr("training.candidates.CANDIDATES", {"spherical": (1,)})
    z = rng.normal(size=(300, 3))
    whole, small = (Density.fit(z * unit, *levels(300), seed=0) for unit in (1.0, 0.1))
    found = [each.log_likelihood(Codes(z * unit, *levels(300))) for each, unit in ((whole, 1.0), (small, 0.1))]

    np.testing.assert_allclose(found[1] - found[0], 3 * np.log(10), rtol=1e-4)
    assert small.held_out_log_likelihood - whole.held_out_log_likelihood == pytest.approx(3 * np.log(10), rel=1e-4)


def test_correlations_of_few_rows_are_not_believed(rng):
    """Of 60 independent values in 90 rows, many seem correlated; the likelihood of other rows tells that none is."""
    z = rng.normal(size=(90, 60))
    drawn = Density.fit(z, *levels(90), seed=0).sample(20_000, seed=0).z

    assert np.abs(np.corrcoef(z.T) - np.eye(60)).max() > 0.3
    assert np.abs(np.corrcoef(drawn.T) - np.eye(60)).max() < 0.15


def test_levels_are_those_of_sounds(rng):
    """What all clips share all samples have, and none is louder than any that was heard."""
    max_db = rng.normal(0, 8, 500)
    max_db = np.clip(max_db, -12, 12)  # so that what is fitted goes beyond
    density = Density.fit(rng.normal(size=(500, 3)), max_db - 80, max_db, seed=0)
    drawn = density.sample(5000, seed=0)

    np.testing.assert_allclose(drawn.max_db - drawn.min_db, 80.0, atol=1e-5)
    assert drawn.max_db.max() == 12
    assert drawn.max_db.min() == -12
    assert drawn.z.dtype == drawn.min_db.dtype == np.float32


@pytest.mark.parametrize(("n", "n_dim"), [(2, 1), (3, 8), (7, 40), (40, 128)])
def test_fewer_rows_than_dimensions(rng, n, n_dim):
    z = rng.normal(size=(n, n_dim)).astype(np.float32)
    z[:, 0] = 7.0  # a latent value that is not used
    drawn = Density.fit(z, *levels(n), seed=0).sample(100, seed=0)

    assert np.isfinite(drawn.z).all()
    np.testing.assert_allclose(drawn.z[:, 0], 7.0, atol=0.05)
    if n_dim > 1:
        assert 0.2 < drawn.z[:, 1:].std() / z[:, 1:].std() < 3


def test_a_flow_comes_back_and_follows_from_its_seed(flowing, tmp_path):
    flowing.save(tmp_path)
    again = Density.load(tmp_path)

    assert (again.kind, again.scores) == (flowing.kind, flowing.scores)
    for name, value in vars(flowing.sample(50, 5)).items():
        np.testing.assert_array_equal(getattr(again.sample(50, 5), name), value)
    codes = flowing.sample(50, 6)
    np.testing.assert_array_equal(again.log_likelihood(codes), flowing.log_likelihood(codes))

    rewrite(tmp_path, flow_kernels_out=np.zeros((6, 64, 4)))
    with pytest.raises(
        ModelError, match=r"holds no density: kernels_out has shape \(6, 64, 4\), expected \(6, 64, 6\)"
    ):
        Density.load(tmp_path)


def test_it_follows_from_its_seed(rng, tmp_path):
    z = clusters(rng)
    for name, seed in (("once", 4), ("again", 4)):
        Density.fit(z, *levels(400), seed=seed).save(tmp_path / name)
    density = Density.load(tmp_path / "once")

    assert (tmp_path / "once" / DENSITY_FILE).read_bytes() == (tmp_path / "again" / DENSITY_FILE).read_bytes()
    np.testing.assert_array_equal(density.sample(50, 1).z, density.sample(50, 1).z)
    assert np.abs(density.sample(50, 1).z - density.sample(50, 2).z).max() > 1


def test_a_saved_density_draws_the_same(rng, tmp_path):
    density = Density.fit(clusters(rng), *levels(400), seed=0)
    density.save(tmp_path)
    again = Density.load(tmp_path)

    assert again.describe() == density.describe()
    assert again.latent_space_dim == 3
    for name, value in vars(density.sample(100, 5)).items():
        np.testing.assert_array_equal(getattr(again.sample(100, 5), name), value)


@pytest.mark.parametrize(
    ("z", "message"),
    [(np.zeros((1, 3)), r"at least two rows of finite codes, and got \(1, 5\)"), ([[0.0], [np.nan]], "finite codes")],
)
def test_codes_that_have_no_density(z, message):
    with pytest.raises(ParameterError, match=message):
        Density.fit(z, *levels(len(z)), seed=0)


# --- what is read


@pytest.fixture
def saved(tmp_path, rng):
    """Return a folder with a density."""
    Density.fit(rng.normal(size=(60, 3)), *levels(60), seed=0).save(tmp_path)
    return tmp_path


def rewrite(folder, **changes):
    """Write the file again with some arrays changed, or left out where they are None."""
    with np.load(folder / DENSITY_FILE) as content:
        arrays = {name: content[name] for name in content.files} | changes
    np.savez(folder / DENSITY_FILE, **{name: value for name, value in arrays.items() if value is not None})


def test_a_density_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match=r"density\.npz: missing; the train stage has not finished here"):
        Density.load(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_a_cut_off_density(saved, share):
    content = (saved / DENSITY_FILE).read_bytes()
    (saved / DENSITY_FILE).write_bytes(content[: int(share * len(content))])

    with pytest.raises(ModelError, match=r"density\.npz: cannot be read: ") as caught:
        Density.load(saved)
    assert "\n" not in str(caught.value)


def test_damage_anywhere_is_found(saved):
    content = bytearray((saved / DENSITY_FILE).read_bytes())
    with zipfile.ZipFile(saved / DENSITY_FILE) as file:
        offset = file.getinfo("basis.npy").header_offset + 300
    content[offset] ^= 0xFF
    (saved / DENSITY_FILE).write_bytes(content)

    with pytest.raises(ModelError, match=r"density\.npz: cannot be read: Bad CRC-32"):
        Density.load(saved)


def test_nothing_is_unpickled(saved):
    rewrite(saved, mean=np.array([{}], dtype=object))

    with pytest.raises(ModelError, match=r"density\.npz: cannot be read: Object arrays cannot be loaded"):
        Density.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 1}, "format_version is 1, expected 2"),
        ({"format_version": None}, "format_version is None, expected 2"),
        ({"mean": None}, "holds no density: .*'mean'"),
        ({"more": np.zeros(3)}, "holds no density: .*'more'"),
        ({"mean": np.zeros(4)}, r"holds no density: basis has shape \(5, 5\), expected \(4, 4\)"),
        ({"weights": np.ones(9)}, "holds no density: means has shape .*"),
        ({"levels_db": np.ones(2)}, r"holds no density: levels_db has shape \(2,\), expected \(2, 2\)"),
        ({"factors": np.ones((1, 2))}, r"holds no density: factors has shape \(1, 2\), expected"),
        ({"mean": np.full(5, np.inf)}, "holds no density: mean holds what is no finite number"),
        ({"covariance_type": None}, "holds no density: 'covariance_type'"),
        ({"candidate_sizes": None}, "holds no density: 'candidate_sizes'"),
        ({"candidate_sizes": np.ones(1, dtype=np.int64)}, "holds no density: zip.*"),
        ({"flow_order": np.zeros((1, 5), dtype=np.int64)}, "holds no density: .*missing 4 required positional"),
    ],
)
def test_a_density_that_is_none(saved, changes, message):
    rewrite(saved, **changes)

    with pytest.raises(ModelError, match=rf"density\.npz: {message}"):
        Density.load(saved)


# --- the codes of a store


def test_codes_are_the_encoders_with_the_tables_levels(store, autoencoder):
    train = Spectrograms(store, "train")
    which = choose_rows(len(train), 70, seed=3)
    codes = encode(autoencoder, train, which)

    assert len(codes) == 70
    assert len(set(which)) == 70
    np.testing.assert_allclose(codes.z, autoencoder.encode(train.rows(which)), rtol=1e-5, atol=1e-5)
    lines = store.table.take(train.places[which]).to_pylist()
    assert codes.min_db.tolist() == [line["min_db"] for line in lines]
    assert codes.max_db.tolist() == [line["max_db"] for line in lines]
    assert [train.groups[row] for row in which] == [line["group"] for line in lines]


def test_all_rows_by_default(store, autoencoder):
    test = Spectrograms(store, "test")

    assert len(encode(autoencoder, test)) == len(test)
    assert choose_rows(5, 100, seed=0).tolist() == [0, 1, 2, 3, 4]
    assert len(encode(autoencoder, test, np.arange(0))) == 0
