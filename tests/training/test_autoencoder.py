import ast
import io
import json
import math

import h5py
import keras
import numpy as np
import pytest
from scipy.stats import norm

from pipeline.errors import ModelError, ParameterError
from pipeline.params import PARAMS_FILE, read_params
from tests.training.conftest import SHAPE, randomised
from training.autoencoder import DESCRIPTION_FILE, WEIGHTS_FILE, Autoencoder
from training.params import Params

NETWORK = {"conv_filters": [6, 6, 6], "conv_kernels": [3, 3, 3], "conv_strides": [2, 2, [2, 1]], "latent_space_dim": 6}


@pytest.fixture
def autoencoder():
    """Return an untrained network with weights that are nowhere as they start."""
    return randomised(Autoencoder(SHAPE, **NETWORK))


@pytest.fixture
def saved(tmp_path, autoencoder):
    """Return the folder of a saved network."""
    autoencoder.save(tmp_path / "model")
    return tmp_path / "model"


def edit_description(folder, **changes):
    path = folder / DESCRIPTION_FILE
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value != "absent"}))


# --- the layers


def assert_mirrored(autoencoder):
    """Compare the layers of the decoder, from its end, with those of the encoder, from its start."""
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    convolutions = [layer for layer in encoder.layers if isinstance(layer, keras.layers.Conv2D)]
    transposed = [layer for layer in decoder.layers if isinstance(layer, keras.layers.Conv2DTranspose)][::-1]
    assert [layer.name for layer in convolutions] == [f"encoder_conv_{n + 1}" for n in range(len(convolutions))]
    assert [layer.name for layer in transposed] == [
        "decoder_output",
        *(f"decoder_conv_transpose_{n + 2}" for n in range(len(convolutions) - 1)),
    ]
    for there, back in zip(convolutions, transposed, strict=True):
        assert there.input.shape == back.output.shape
        assert there.output.shape == back.input.shape
        assert (there.kernel_size, there.strides) == (back.kernel_size, back.strides)
    assert encoder.get_layer("encoder_flatten").input.shape == decoder.get_layer("decoder_reshape").output.shape
    assert encoder.output.shape == decoder.input.shape
    assert encoder.input.shape == decoder.output.shape


def kinds(model):
    return [type(layer).__name__ for layer in model.layers]


def test_the_default_network_mirrors_itself(pytestconfig):
    section = read_params(Params, pytestconfig.rootpath / PARAMS_FILE).autoencoder
    autoencoder = Autoencoder((256, 64, 1), **section.model_dump())

    assert_mirrored(autoencoder)
    assert kinds(autoencoder.encoder).count("Conv2D") >= 3
    assert kinds(autoencoder.decoder).count("Conv2DTranspose") >= 3
    assert autoencoder.encoder.output.shape == (None, section.latent_space_dim)


@pytest.mark.parametrize(
    ("shape", "filters", "kernels", "strides"),
    [
        ((16, 16, 1), [3], [3], [1]),
        ((16, 16, 1), [3, 4, 5], [3, 5, 2], [2, 2, 2]),
        ((12, 35, 1), [3, 4], [(3, 5), 1], [(4, 7), (3, 5)]),
        ((64, 16, 1), [2, 3, 4, 5, 6], [3, 3, 3, 3, 3], [2, 2, (4, 1), 1, (1, 4)]),
    ],
)
def test_decoder_mirrors_encoder(shape, filters, kernels, strides):
    autoencoder = Autoencoder(shape, filters, kernels, strides, 7)

    assert_mirrored(autoencoder)
    assert [layer.filters for layer in autoencoder.encoder.layers if hasattr(layer, "filters")] == filters
    rows = math.prod(stride if isinstance(stride, int) else stride[0] for stride in strides)
    columns = math.prod(stride if isinstance(stride, int) else stride[1] for stride in strides)
    bottleneck = (shape[0] // rows, shape[1] // columns, filters[-1])
    assert autoencoder.architecture.bottleneck_shape == bottleneck
    assert autoencoder.encoder.get_layer("encoder_flatten").input.shape[1:] == bottleneck


def test_layers_come_in_the_stated_order():
    autoencoder = Autoencoder(SHAPE, **NETWORK)
    block = ["SynchronisedBatchNormalization", "ReLU"]

    assert kinds(autoencoder.encoder) == ["InputLayer", *["Conv2D", *block] * 3, "Flatten", "Dense"]
    assert kinds(autoencoder.decoder) == [
        "InputLayer",
        "Dense",
        "Reshape",
        *["Conv2DTranspose", *block] * 2,
        "Conv2DTranspose",
    ]
    assert [model.name for model in (autoencoder.encoder, autoencoder.decoder, autoencoder.model)] == [
        "encoder",
        "decoder",
        "autoencoder",
    ]


def test_summary_shows_all_three(capsys):
    Autoencoder(SHAPE, **NETWORK).summary()
    shown = capsys.readouterr().out

    for name in ('"encoder"', '"decoder"', '"autoencoder"', "encoder_conv_3", "decoder_conv_transpose_2"):
        assert name in shown


@pytest.mark.parametrize(
    ("shape", "strides", "message"),
    [
        (
            (256, 64, 1),
            [16, 3],
            r"input_shape=\(256, 64, 1\): 256 bins are no multiple of 48, the product of conv_strides along bins",
        ),
        (
            (256, 63, 1),
            [(16, 2), (2, 1)],
            r"input_shape=\(256, 63, 1\): 63 frames are no multiple of 2, the product of conv_strides along frames",
        ),
        ((8, 8, 1), [4, 4], r"input_shape=\(8, 8, 1\): 8 bins are no multiple of 16"),
        ((8, 8), [1, 1], r"input_shape=\(8, 8\) must be \(n_bins, n_frames, 1\)"),
        ((8, 8, 2), [1, 1], r"input_shape=\(8, 8, 2\) must be \(n_bins, n_frames, 1\)"),
    ],
)
def test_a_shape_that_cannot_be_mirrored(shape, strides, message):
    with pytest.raises(ParameterError, match=message):
        Autoencoder(shape, [4, 4], [3, 3], strides, 5)


@pytest.mark.parametrize(
    ("filters", "kernels", "strides", "lengths"),
    [([4], [3, 3], [2, 2], "1, 2 and 2"), ([4, 4], [3], [2, 2, 2], "2, 1 and 3"), ([], [], [], "0, 0 and 0")],
)
def test_layers_without_partners(filters, kernels, strides, lengths):
    with pytest.raises(ParameterError, match=f"have {lengths} entries, and must have one per layer"):
        Autoencoder(SHAPE, filters, kernels, strides, 5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_filters": [4, 0, 4]}, r"conv_filters=\(4, 0, 4\) must be whole numbers of at least 1"),
        ({"conv_strides": [2, 2, (0, 1)]}, r"conv_strides=\(\(2, 2\), \(2, 2\), \(0, 1\)\) must be whole numbers"),
        ({"conv_kernels": [3, -3, 3]}, r"conv_kernels=\(\(3, 3\), \(-3, -3\), \(3, 3\)\) must be whole numbers"),
        ({"conv_kernels": [3, 2.5, 3]}, r"conv_kernels has 2\.5, which must be a whole number or two of them"),
        ({"conv_kernels": [3, (1, 2, 3), 3]}, r"conv_kernels has \(1, 2, 3\), which must be a whole number or two"),
        ({"latent_space_dim": 0}, "latent_space_dim=0 must be whole numbers of at least 1"),
        ({"input_shape": (0, 16, 1)}, r"input_shape=\(0, 16, 1\) must be whole numbers of at least 1"),
    ],
)
def test_numbers_that_no_layer_can_have(changes, message):
    with pytest.raises(ParameterError, match=message):
        Autoencoder(**{"input_shape": SHAPE, **NETWORK, **changes})


# --- what it computes


def normalise(x, layer):
    """Return what batch normalisation makes of x after training."""
    gamma, beta, mean, variance = (np.float64(each) for each in layer.get_weights())
    return np.maximum((x - mean) / np.sqrt(variance + layer.epsilon) * gamma + beta, 0.0)


def test_it_computes_what_numpy_does(rng):
    """With kernels as large as strides a convolution is one matrix product per patch, and needs no padding."""
    autoencoder = randomised(Autoencoder((8, 12, 1), [5, 4], [2, (2, 3)], [2, (2, 3)], 3))
    x = rng.uniform(size=(6, 8, 12, 1)).astype(np.float32)
    encoder, decoder = autoencoder.encoder, autoencoder.decoder

    y = np.float64(x)
    for number, (rows, columns) in enumerate(((2, 2), (2, 3)), start=1):
        n, height, width, depth = y.shape
        patches = y.reshape(n, height // rows, rows, width // columns, columns, depth)
        (kernel,) = encoder.get_layer(f"encoder_conv_{number}").get_weights()
        y = np.einsum("nhrwcd,rcdf->nhwf", patches, kernel)
        y = normalise(y, encoder.get_layer(f"encoder_bn_{number}"))
    kernel, bias = encoder.get_layer("encoder_output").get_weights()
    z = y.reshape(6, -1) @ kernel + bias
    kernel, bias = decoder.get_layer("decoder_dense").get_weights()
    y = (z @ kernel + bias).reshape(6, 2, 2, 4)
    (kernel,) = decoder.get_layer("decoder_conv_transpose_2").get_weights()
    y = np.einsum("nhwf,rcdf->nhrwcd", y, kernel).reshape(6, 4, 6, 5)
    y = normalise(y, decoder.get_layer("decoder_bn_2"))
    kernel, bias = decoder.get_layer("decoder_output").get_weights()
    x_hat = np.einsum("nhwf,rcdf->nhrwcd", y, kernel).reshape(6, 8, 12, 1) + bias

    found, found_z = autoencoder.reconstruct(x)
    np.testing.assert_allclose(found_z, z, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found, x_hat, rtol=1e-5, atol=1e-5)


def test_reconstruct_is_decode_of_encode(autoencoder, rng):
    x = rng.uniform(size=(10, *SHAPE)).astype(np.float32)
    x_hat, z = autoencoder.reconstruct(x)

    assert x_hat.shape == x.shape
    assert z.shape == (10, NETWORK["latent_space_dim"])
    assert x_hat.dtype == z.dtype == np.float32
    np.testing.assert_array_equal(autoencoder.encode(x), z)
    np.testing.assert_array_equal(autoencoder.decode(z), x_hat)


def test_rows_do_not_know_of_each_other(autoencoder, rng):
    x = rng.uniform(size=(10, *SHAPE)).astype(np.float32)
    together, _ = autoencoder.reconstruct(x)

    for batch_size in (1, 3, 10):
        np.testing.assert_allclose(autoencoder.reconstruct(x, batch_size)[0], together, rtol=1e-4, atol=1e-5)


def test_no_rows(autoencoder):
    x_hat, z = autoencoder.reconstruct(np.empty((0, *SHAPE), dtype=np.float32))

    assert x_hat.shape == (0, *SHAPE)
    assert z.shape == (0, NETWORK["latent_space_dim"])


def test_rows_of_another_shape(autoencoder):
    with pytest.raises(ParameterError, match=r"encoder: rows have shape \(16, 8, 1\) and must have \(16, 16, 1\)"):
        autoencoder.encode(np.zeros((2, 16, 8, 1), dtype=np.float32))
    with pytest.raises(ParameterError, match=r"decoder: rows have shape \(5,\) and must have \(6,\)"):
        autoencoder.decode(np.zeros((2, 5), dtype=np.float32))


def test_output_bias_shifts_everything(autoencoder, rng):
    z = rng.normal(size=(3, NETWORK["latent_space_dim"])).astype(np.float32)
    autoencoder.set_output_bias(0.0)
    before = autoencoder.decode(z)
    autoencoder.set_output_bias(0.625)

    np.testing.assert_allclose(autoencoder.decode(z), before + 0.625, atol=1e-6)


# --- a variational one


@pytest.fixture
def variational():
    return randomised(Autoencoder(SHAPE, **NETWORK, variational=True, beta=0.02))


def test_its_code_is_the_mean_of_what_it_trains_with(variational, rng):
    x, noise = rng.uniform(size=(5, *SHAPE)).astype(np.float32), rng.normal(size=(5, 6)).astype(np.float32)
    log_variance = keras.Model(variational.encoder.input, variational.model.get_layer("encoder_log_variance").output)(x)
    x_hat, z = variational.reconstruct(x)
    drawn = z + np.sqrt(np.exp(log_variance)) * noise

    np.testing.assert_allclose(variational.model([x, 0 * noise])[0], x_hat, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(variational.model([x, noise])[0], variational.decode(drawn), rtol=1e-4, atol=1e-4)
    assert np.abs(drawn - z).min() > 1e-4


def test_the_divergence_is_that_of_two_normal_distributions(variational, rng):
    x = rng.uniform(size=(3, *SHAPE)).astype(np.float32)
    log_variance = keras.Model(variational.encoder.input, variational.model.get_layer("encoder_log_variance").output)(x)
    found = variational.model([x, np.zeros((3, 6), np.float32)])[1]

    expected = []
    for means, deviations in zip(variational.encode(x), np.sqrt(np.exp(np.float64(log_variance))), strict=True):
        # The integral of q log(q / p), from far below each mean to far above it.
        nodes = means + deviations * np.linspace(-12, 12, 20_001)[:, None]
        log_q, log_p = norm.logpdf(nodes, means, deviations), norm.logpdf(nodes)
        expected.append(np.trapezoid(np.exp(log_q) * (log_q - log_p), nodes, axis=0).sum())
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_variational_one_is_saved_whole(variational, tmp_path, rng):
    variational.save(tmp_path)
    loaded = Autoencoder.load(tmp_path)
    x, noise = rng.uniform(size=(5, *SHAPE)).astype(np.float32), rng.normal(size=(5, 6)).astype(np.float32)

    assert loaded.architecture == variational.architecture
    assert (loaded.architecture.variational, loaded.architecture.beta) == (True, 0.02)
    for ours, theirs in zip(loaded.model([x, noise]), variational.model([x, noise]), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ModelError, match=r"autoencoder\.json: variational is True, expected False"):
        Autoencoder(SHAPE, **NETWORK).load_weights(tmp_path)


def test_a_variational_one_learns(learnable):
    x, error_of_mean = learnable
    keras.utils.set_random_seed(0)
    autoencoder = Autoencoder(SHAPE, **NETWORK, variational=True, beta=1e-3)
    autoencoder.compile(1e-2)
    history = autoencoder.train(x, batch_size=16, num_epochs=25)

    assert history[-1] < 0.7 * error_of_mean < history[0]
    assert np.mean((autoencoder.reconstruct(x)[0] - x) ** 2) < history[-1]  # no noise


# --- training


@pytest.fixture(scope="module")
def learnable():
    """Rows (64, ...) that three numbers each describe, and the error of their mean."""
    u, v = np.meshgrid(*[np.linspace(0, np.pi, each) for each in SHAPE[:2]], indexing="ij")
    patterns = np.stack([np.cos(u), np.cos(v), np.cos(2 * u) * np.cos(v)])[..., None]
    x = 0.5 + 0.1 * np.tensordot(np.random.default_rng(0).normal(size=(64, 3)), patterns, axes=1)
    return x.astype(np.float32), float(np.mean((x - x.mean(axis=0)) ** 2))


@pytest.fixture(scope="module")
def trained(learnable):
    """Return a network after 40 epochs of 4 batches, and its history."""
    keras.utils.set_random_seed(0)
    autoencoder = Autoencoder(SHAPE, **NETWORK)
    autoencoder.compile(1e-2)
    return autoencoder, autoencoder.train(learnable[0], batch_size=16, num_epochs=40)


def test_training_beats_the_mean(learnable, trained):
    x, error_of_mean = learnable
    autoencoder, history = trained

    assert len(history) == 40
    assert history[-1] < 0.5 * error_of_mean < error_of_mean < history[0]
    assert np.mean((autoencoder.reconstruct(x)[0] - x) ** 2) < 0.5 * error_of_mean


def test_training_follows_from_its_seeds(learnable):
    x, _ = learnable

    def train(seed):
        keras.utils.set_random_seed(1)
        autoencoder = Autoencoder(SHAPE, [4], [3], [4], 3)
        autoencoder.compile(1e-2)
        return autoencoder.train(x, batch_size=16, num_epochs=2, seed=seed), autoencoder.reconstruct(x)[0]

    history, x_hat = train(3)
    again, x_hat_again = train(3)
    other, _ = train(4)

    np.testing.assert_allclose(again, history, rtol=1e-6)
    np.testing.assert_allclose(x_hat_again, x_hat, atol=1e-4)
    assert np.abs(np.array(other) / history - 1).max() > 1e-4


def test_rows_that_do_not_fill_a_batch_are_left_for_another_epoch(learnable):
    x, _ = learnable
    autoencoder = Autoencoder(SHAPE, [4], [3], [4], 3)
    autoencoder.compile(1e-3)
    autoencoder.train(x, batch_size=24, num_epochs=3)

    assert int(autoencoder.optimizer.iterations) == 3 * (64 // 24)


def test_train_wants_compile_first(learnable):
    with pytest.raises(ParameterError, match=r"compile\(learning_rate\) must come before train"):
        Autoencoder(SHAPE, **NETWORK).train(learnable[0], 16, 1)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((15, *SHAPE), "x has 15 rows and must have at least batch_size=16"),
        ((0, *SHAPE), "x has 0 rows and must have at least batch_size=16"),
        ((32, 16, 16), r"encoder: rows have shape \(16, 16\) and must have \(16, 16, 1\)"),
    ],
)
def test_what_cannot_be_trained_on(autoencoder, shape, message):
    autoencoder.compile()
    with pytest.raises(ParameterError, match=message):
        autoencoder.train(np.zeros(shape, dtype=np.float32), 16, 1)


# --- save and load


def test_a_saved_network_computes_the_same_bits(saved, autoencoder, rng):
    x = rng.uniform(size=(9, *SHAPE)).astype(np.float32)
    loaded = Autoencoder.load(saved)

    assert loaded.architecture == autoencoder.architecture
    for ours, theirs in zip(loaded.model.weights, autoencoder.model.weights, strict=True):
        assert ours.path == theirs.path
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(loaded.reconstruct(x), autoencoder.reconstruct(x), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_trained_network_computes_the_same_bits(tmp_path, learnable, trained):
    x, _ = learnable
    autoencoder, _ = trained
    autoencoder.save(str(tmp_path))

    np.testing.assert_array_equal(Autoencoder.load(str(tmp_path)).reconstruct(x)[0], autoencoder.reconstruct(x)[0])


def test_saving_again_replaces(saved, rng):
    other = randomised(Autoencoder(SHAPE, **NETWORK), seed=1)
    other.save(saved)
    x = rng.uniform(size=(2, *SHAPE)).astype(np.float32)

    np.testing.assert_array_equal(Autoencoder.load(saved).encode(x), other.encode(x))


def test_a_saved_folder_is_json_and_numbers(saved):
    assert sorted(path.name for path in saved.iterdir()) == [DESCRIPTION_FILE, WEIGHTS_FILE]
    assert json.loads((saved / DESCRIPTION_FILE).read_text()) == {
        "format_version": 2,
        "input_shape": [16, 16, 1],
        "conv_filters": [6, 6, 6],
        "conv_kernels": [[3, 3], [3, 3], [3, 3]],
        "conv_strides": [[2, 2], [2, 2], [2, 1]],
        "latent_space_dim": 6,
        "variational": False,
        "beta": 1e-3,
    }
    content = (saved / WEIGHTS_FILE).read_bytes()
    assert content.startswith(b"\x89HDF\r\n\x1a\n")
    dtypes = []
    with h5py.File(io.BytesIO(content)) as file:
        file.visititems(lambda _, item: dtypes.append(item.dtype) if isinstance(item, h5py.Dataset) else None)
    assert set(dtypes) == {np.dtype(np.float32)}


def test_nothing_is_pickled(pytestconfig):
    for path in (pytestconfig.rootpath / "training").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not names & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}, path
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert node.value.value is False, path


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(
        ModelError, match=r"nowhere.autoencoder\.json: missing, expected a folder that Autoencoder\.save wrote"
    ):
        Autoencoder.load(tmp_path / "nowhere")


def test_missing_weights(saved):
    (saved / WEIGHTS_FILE).unlink()

    with pytest.raises(ModelError, match=r"weights\.h5: missing, expected the weights of autoencoder\.json beside it"):
        Autoencoder.load(saved)


@pytest.mark.parametrize("version", [1, None, "2"])
def test_another_format_version(saved, version):
    edit_description(saved, format_version=version)

    with pytest.raises(ModelError, match=rf"autoencoder\.json: format_version is {version!r}, expected 2"):
        Autoencoder.load(saved)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read: Expecting value"),
        (b'{"format_version": 2', "cannot be read: Expecting ',' delimiter"),
        (b"\xff\xfe", "cannot be read: 'utf-8' codec"),
        (b"[]", "holds list, expected an object"),
        (b"null", "holds NoneType, expected an object"),
        (b"{}", "format_version is None, expected 2"),
        (b'{"format_version": 2}', r"holds \[\], expected \['beta', 'conv_filters', 'conv_kernels', 'conv_str"),
    ],
)
def test_garbage_for_a_description(saved, content, message):
    (saved / DESCRIPTION_FILE).write_bytes(content)

    with pytest.raises(ModelError, match=rf"autoencoder\.json: {message}"):
        Autoencoder.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_filters": "absent"}, r"holds \['beta', 'conv_kernels', .*expected \['beta', 'conv_filters', "),
        ({"dropout": 0.5}, r"holds \['beta', .*'dropout'.* expected \["),
        ({"conv_filters": 5}, "describes no autoencoder: "),
        ({"conv_filters": [6, 6]}, "describes no autoencoder: .* have 2, 3 and 3 entries"),
        ({"conv_kernels": [3, [3], 3]}, "describes no autoencoder: "),
        ({"input_shape": [16, 16]}, r"describes no autoencoder: input_shape=\(16, 16\) must be"),
        ({"input_shape": None}, "describes no autoencoder: "),
        ({"input_shape": [15, 16, 1]}, "describes no autoencoder: .*15 bins are no multiple of 8"),
        ({"latent_space_dim": "6"}, "describes no autoencoder: "),
        ({"beta": 0}, r"describes no autoencoder: beta=0 must be a number above zero"),
        ({"beta": "much"}, r"describes no autoencoder: "),
    ],
)
def test_a_description_of_no_network(saved, changes, message):
    edit_description(saved, **changes)

    with pytest.raises(ModelError, match=rf"autoencoder\.json: {message}"):
        Autoencoder.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_space_dim": 7}, r"encoder_output.*variable\.shape=\(48, 7\), Received: value\.shape=\(48, 6\)"),
        ({"conv_filters": [6, 8, 6]}, r"variable\.shape=\(3, 3, 6, 8\), Received: value\.shape=\(3, 3, 6, 6\)"),
        (
            {"conv_filters": [6, 6], "conv_kernels": [[3, 3], [3, 3]], "conv_strides": [[2, 2], [4, 2]]},
            r"'decoder_output' expected 2 variables, but received 1 variables",
        ),
    ],
)
def test_weights_of_another_network(saved, changes, message):
    edit_description(saved, **changes)

    with pytest.raises(ModelError, match=rf"weights\.h5: cannot be read as the weights of this .*{message}") as caught:
        Autoencoder.load(saved)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layers/dense/vars/1", "'encoder_output' expected 2 variables, but received 1"),
        (
            "layers/functional/layers/conv2d_transpose",
            "'decoder_conv_transpose_3' expected 1 variables, but received 0",
        ),
        ("layers", "'encoder_conv_1' expected 1 variables, but received 0"),
    ],
)
def test_weights_of_which_some_are_missing(saved, name, message):
    with h5py.File(saved / WEIGHTS_FILE, "a") as file:
        del file[name]

    with pytest.raises(ModelError, match=rf"weights\.h5: cannot be read as the weights of this .*{message}"):
        Autoencoder.load(saved)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.99])
def test_truncated_weights(saved, share):
    content = (saved / WEIGHTS_FILE).read_bytes()
    (saved / WEIGHTS_FILE).write_bytes(content[: int(len(content) * share)])

    with pytest.raises(
        ModelError, match=r"weights\.h5: cannot be read as the weights of this architecture: "
    ) as caught:
        Autoencoder.load(saved)
    assert len(str(caught.value).splitlines()) == 1


def test_weights_that_are_no_weights(saved):
    (saved / WEIGHTS_FILE).write_text("not HDF5")

    with pytest.raises(ModelError, match=r"weights\.h5: cannot be read as the weights of this architecture: "):
        Autoencoder.load(saved)


def test_load_weights_wants_the_same_network(saved):
    changed = Autoencoder(SHAPE, **NETWORK | {"latent_space_dim": 5})
    before = changed.model.get_weights()

    with pytest.raises(ModelError, match=r"autoencoder\.json: latent_space_dim is 6, expected 5"):
        changed.load_weights(saved)
    for ours, theirs in zip(changed.model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
