"""`evaluate`, `generate` and `listen` from their command lines, one after the other, in a small project."""

import csv
import json
import shutil

import mlflow
import numpy as np
import pytest
import soundfile as sf
from ruamel.yaml import YAML

from pipeline.corpus import Splitter
from pipeline.errors import CorpusError
from pipeline.loader import Loader
from pipeline.normaliser import MinMaxNormaliser
from pipeline.padder import Padder
from pipeline.params import PARAMS_FILE
from pipeline.paths import SPECTROGRAMS, TABLE
from pipeline.preprocessing import PreprocessingPipeline
from pipeline.spectrogram import LogSpectrogramExtractor
from pipeline.store import Saver, Store
from tests.sounds import digest
from tests.training.conftest import (
    DURATION_S,
    FIXED,
    NETWORK,
    SAMPLE_RATE,
    SHAPE,
    make_progress,
    randomised,
    write_notes,
)
from tests.training.processes import python_m, said
from training.autoencoder import Autoencoder
from training.codes import encode
from training.dataset import Spectrograms
from training.density import DENSITY_FILE, Density
from training.description import DESCRIPTION_FILE, Description
from training.distances import nearest
from training.metrics import LinearAutoencoder, log_spectral_distance_db, mean_squared_error
from training.originals import Originals
from training.paths import (
    BANDS,
    CODES,
    CURVES,
    DENSITIES,
    GENERATED_SOUNDS,
    GENERATION,
    GENERATION_METRICS,
    LABELS,
    MAP,
    MODEL,
    PAGE,
    TEST_METRICS,
)
from training.progress import write_curves
from training.sound import SoundAutoencoder

_ELSEWHERE = dict.fromkeys(("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_STAGE"))
_CHANGES = {
    "corpus.label": r"^(?P<label>[^/]+)/",
    "evaluate.examples": 2,
    "generate.count": 5,
    "generate.interpolations": 2,
    "generate.interpolation_steps": 3,
    "generate.arithmetic": 2,
    "generate.map_clips": 12,
    "generate.seed": 3,
}


def run(project, stage):
    return python_m(project, f"training.stages.{stage}", **_ELSEWHERE)


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def project(tmp_path_factory, pytestconfig):
    """Return a project, whose clips have labels, after the three stages."""
    folder = tmp_path_factory.mktemp("labelled")
    PreprocessingPipeline(
        Loader(SAMPLE_RATE, DURATION_S),
        Padder(),
        LogSpectrogramExtractor(32, 32),
        MinMaxNormaliser(),
        Saver(folder / SPECTROGRAMS, folder / TABLE),
        Splitter(_CHANGES["corpus.label"], r"^(?P<group>[^/]+/[^_]+)", validation_share=0.2, test_share=0.2),
    ).preprocess(write_notes(folder / "sounds", np.random.default_rng(1)))
    yaml = YAML(typ="safe", pure=True)
    content = yaml.load((pytestconfig.rootpath / PARAMS_FILE).read_text(encoding="utf-8"))
    for name, value in {**FIXED, **_CHANGES}.items():
        section, _, key = name.partition(".")
        content[section][key] = value
    with (folder / PARAMS_FILE).open("w", encoding="utf-8") as file:
        yaml.dump(content, file)
    autoencoder = randomised(Autoencoder(SHAPE, **NETWORK))
    autoencoder.save(folder / MODEL)
    train = Spectrograms(store_of(folder), "train")
    description = Description("key", train.store.digest, train.store.format.parameters, None)
    (folder / MODEL / DESCRIPTION_FILE).write_text(description.to_json())
    codes = encode(autoencoder, train)
    Density.fit(codes.z, codes.min_db, codes.max_db, 0, train.groups).save(folder / MODEL)
    write_curves(folder / CURVES, make_progress(0.5, 0.4))
    for stage in ("evaluate", "generate", "listen"):
        finished = run(folder, stage)
        assert finished.returncode == 0, finished.stderr
    return folder


def store_of(folder):
    return Store(folder / SPECTROGRAMS, folder / TABLE)


@pytest.fixture(scope="module")
def sound(project):
    return SoundAutoencoder.load(project / MODEL)


@pytest.fixture(scope="module")
def test_rows(project):
    return Spectrograms(store_of(project), "test")


@pytest.fixture(scope="module")
def train_rows(project):
    return Spectrograms(store_of(project), "train")


def z_of(line):
    return np.array([float(line[f"z_{number}"]) for number in range(NETWORK["latent_space_dim"])])


# --- evaluate


def test_the_figures_are_those_of_all_rows(project, sound, test_rows, train_rows):
    figures = json.loads((project / TEST_METRICS).read_text())
    x = test_rows.rows(np.arange(len(test_rows)))
    linear = LinearAutoencoder(train_rows, 6, seed=0)
    originals = Originals(project / "sounds", sound_parameters(project))
    y = np.stack([originals.load(clip_id) for clip_id in test_rows.clip_ids])

    for prefix, x_hat in (("", sound.autoencoder.reconstruct(x)[0]), ("pca_", linear.reconstruct(x))):
        errors = mean_squared_error(x, x_hat)
        assert figures[f"{prefix}test_mse"] == pytest.approx(errors.mean(), rel=1e-4)
        assert figures[f"{prefix}test_psnr_db"] == pytest.approx(np.mean(-10 * np.log10(errors)), rel=1e-4)
        distance_db = log_spectral_distance_db(y, sound.invert(x_hat, *test_rows.extremes_db))
        assert figures[f"{prefix}test_log_spectral_distance_db"] == pytest.approx(distance_db.mean(), rel=1e-3)


def sound_parameters(project):
    return Description.load(project / MODEL).preprocessing


def test_each_figure_lies_in_its_interval(project):
    figures = json.loads((project / TEST_METRICS).read_text())
    names = [name.removesuffix("_low") for name in figures if name.endswith("_low")]

    assert len(names) == 15
    for name in names:
        if name.startswith("difference_"):
            of_model = name.removeprefix("difference_")
            assert figures[name] == pytest.approx(figures[of_model] - figures[f"pca_{of_model}"], rel=1e-6, abs=1e-9)
        assert figures[f"{name}_low"] < figures[name] < figures[f"{name}_high"]
    assert all(isinstance(value, int | float) for value in figures.values())


def test_the_tables_are_the_figures_in_parts(project, test_rows):
    figures = json.loads((project / TEST_METRICS).read_text())
    labels, bands = read_csv(project / LABELS), read_csv(project / BANDS)

    assert [line["label"] for line in labels] == ["instrument0", "instrument1", "instrument2"]
    assert [int(line["clips"]) for line in labels] == [test_rows.labels.count(line["label"]) for line in labels]
    assert len(bands) == 16
    groups = set(zip(test_rows.groups, test_rows.labels, strict=True))
    for name in ("test_mse", "pca_test_mse"):
        of_labels = np.average([float(each[name]) for each in labels], weights=[int(each["clips"]) for each in labels])
        assert of_labels == pytest.approx(figures[name], rel=1e-6)
        assert np.mean([float(each[name]) for each in bands]) == pytest.approx(figures[name], rel=1e-6)
        for each in bands:
            assert float(each[f"{name}_low"]) < float(each[name]) < float(each[f"{name}_high"])
        for each in labels:
            n_groups = len({group for group, label in groups if label == each["label"]})
            assert int(each["groups"]) == n_groups
            ends = each[f"{name}_low"], each[f"{name}_high"]
            assert ends == ("", "") if n_groups == 1 else float(ends[0]) <= float(each[name]) <= float(ends[1])


# --- generate


def test_samples_are_the_densitys(project):
    drawn = Density.load(project / MODEL).sample(5, seed=3)
    lines = [line for line in read_csv(project / CODES) if line["kind"] == "sample"]

    np.testing.assert_allclose([z_of(line) for line in lines], drawn.z, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose([float(line["max_db"]) for line in lines], drawn.max_db, rtol=1e-4)


def test_every_sound_is_that_of_its_code(project, sound):
    lines = read_csv(project / CODES)
    assert sorted(line["file"] for line in lines) == sorted(p.name for p in (project / GENERATED_SOUNDS).iterdir())
    assert len(lines) == 5 + 2 * 3 + 2
    z = np.array([z_of(line) for line in lines], dtype=np.float32)
    levels = [np.array([float(line[name]) for line in lines], dtype=np.float32) for name in ("min_db", "max_db")]
    expected = sound.invert(sound.autoencoder.decode(z), *levels)
    # What would be cut off at full scale is quieter as a whole.
    expected /= np.maximum(np.abs(expected).max(axis=1, keepdims=True), 1)
    for line, y in zip(lines, expected, strict=True):
        found, sample_rate = sf.read(project / GENERATED_SOUNDS / line["file"], dtype="float32")
        assert sample_rate == sound.sample_rate
        # Codes have six digits in the table, and samples sixteen bits.
        np.testing.assert_allclose(found, y, atol=2e-3 * max(1.0, np.abs(y).max()))


def test_interpolations_go_from_clip_to_clip(project, sound, test_rows):
    codes = encode(sound.autoencoder, test_rows)
    lines = [line for line in read_csv(project / CODES) if line["kind"] == "interpolation"]
    for start in (0, 3):
        first, middle, last = lines[start : start + 3]
        ends = [test_rows.clip_ids.index(first[name]) for name in ("source", "target")]
        np.testing.assert_allclose(z_of(first), codes.z[ends[0]], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(z_of(last), codes.z[ends[1]], rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(z_of(middle), codes.z[ends].mean(axis=0), rtol=1e-3, atol=1e-3)
        assert [float(line["share"]) for line in (first, middle, last)] == [0, 0.5, 1]


def test_neighbours_are_the_nearest(project, sound, train_rows):
    among = encode(sound.autoencoder, train_rows).z
    lines = read_csv(project / CODES)
    place, distance = nearest(np.array([z_of(line) for line in lines], dtype=np.float32), among)

    assert [line["nearest"] for line in lines] == [train_rows.clip_ids[row] for row in place]
    np.testing.assert_allclose([float(line["nearest_distance"]) for line in lines], distance, rtol=1e-2, atol=1e-2)


def test_the_figures_of_generated_sounds(project, sound, test_rows, train_rows):
    figures = json.loads((project / GENERATION_METRICS).read_text())
    among, held_out = (encode(sound.autoencoder, rows).z for rows in (train_rows, test_rows))

    assert figures["held_out_nearest_distance"] == pytest.approx(np.median(nearest(held_out, among)[1]), rel=1e-3)
    # Training clips and PCA's samples are sounds of the corpus, or near; noise is not.
    assert figures["frechet_train"] < figures["frechet_white_noise"]
    assert figures["frechet_pca_samples"] < figures["frechet_white_noise"]
    assert set(figures) == {
        "sample_nearest_distance",
        "held_out_nearest_distance",
        "frechet_samples",
        "frechet_pca_samples",
        "frechet_white_noise",
        "frechet_train",
        *(f"held_out_log_likelihood_{family}" for family in Density.load(project / MODEL).family_scores),
    }


def test_the_table_of_densities(project):
    density = Density.load(project / MODEL)
    lines = read_csv(project / DENSITIES)
    figures = json.loads((project / GENERATION_METRICS).read_text())

    assert [line["density"] for line in lines] == [f"{kind} {size}" for kind, size in density.scores]
    scores = [float(line["held_out_log_likelihood"]) for line in lines]
    np.testing.assert_allclose(scores, list(density.scores.values()), atol=1e-4)
    assert [line["chosen"] for line in lines].index("1") == np.argmax(scores)
    assert sum(int(line["chosen"]) for line in lines) == 1
    judged = {name: value for name, value in figures.items() if name.startswith("held_out_log_likelihood_")}
    assert max(judged.values()) == density.held_out_log_likelihood


def test_the_same_again(project):
    before = digest(project / GENERATED_SOUNDS, project / CODES, project / MAP, project / GENERATION_METRICS)
    finished = run(project, "generate")

    assert finished.returncode == 0, finished.stderr
    assert digest(project / GENERATED_SOUNDS, project / CODES, project / MAP, project / GENERATION_METRICS) == before


def test_all_stages_are_in_one_run(project):
    client = mlflow.MlflowClient(f"sqlite:///{project}/mlflow.db")
    (run_,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    artifacts = {item.path for item in client.list_artifacts(run_.info.run_id)}
    generated = {item.path for item in client.list_artifacts(run_.info.run_id, "generate")}

    assert {"listen.html", "evaluate", "generate"} <= artifacts
    assert {"generate/codes.csv", "generate/densities.csv", "generate/sample_001.wav"} <= generated
    figures = json.loads((project / TEST_METRICS).read_text()) | json.loads((project / GENERATION_METRICS).read_text())
    assert {name: run_.data.metrics[name] for name in figures} == pytest.approx(figures, rel=1e-9)


# --- listen


def test_the_page_holds_it_all(project, test_rows):
    text = (project / PAGE).read_text(encoding="utf-8")
    data = json.loads(text.split('<script id="data" type="application/json">')[1].split("</script>")[0])

    assert [len(data[name]) for name in ("pairs", "samples", "interpolations", "moves", "points")] == [2, 5, 2, 2, 12]
    assert [len(each["steps"]) for each in data["interpolations"]] == [3, 3]
    assert {point["label"] for point in data["points"]} <= {"instrument0", "instrument1", "instrument2"}
    assert text.count('id="point-') == 12
    assert "http" not in text.replace("http://www.w3.org/", "")


# --- refused


def error_of(finished):
    assert finished.returncode == 1, finished.stderr
    return said(finished)[-1]


@pytest.fixture
def damaged(tmp_path, project):
    """Return a copy of the project to damage."""
    shutil.copytree(project, tmp_path / "project", ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    return tmp_path / "project"


def test_a_model_without_a_density(damaged):
    (damaged / MODEL / DENSITY_FILE).unlink()
    before = digest(damaged / GENERATION)

    assert error_of(run(damaged, "generate")) == (
        f"error: {MODEL}/{DENSITY_FILE}: missing; the train stage has not finished here"
    )
    assert digest(damaged / GENERATION) == before


def test_a_model_of_other_data(damaged):
    path = damaged / MODEL / DESCRIPTION_FILE
    path.write_text(path.read_text().replace('"data_digest": "', '"data_digest": "0'))

    assert "was trained on other spectrograms than" in error_of(run(damaged, "generate"))


def test_a_recording_that_is_gone(damaged):
    gone = read_csv(damaged / MAP)[0]["clip"]
    (damaged / "sounds" / gone).unlink()

    assert error_of(run(damaged, "listen")) == (
        f"error: corpus folder 'sounds' no longer holds {gone!r}; run the preprocess stage again"
    )
    with pytest.raises(CorpusError, match=r"no longer holds 'nowhere\.wav'"):
        Originals(damaged / "sounds", sound_parameters(damaged)).load("nowhere.wav")
