"""Stage `evaluate`: the trained model on sounds that it has never heard, into its MLflow run and `reports/evaluate`."""

import argparse
import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from pipeline import command
from pipeline.params import read_params
from training import tracking, tracking_origin
from training.checkpoint import Checkpoints
from training.codes import choose_rows
from training.dataset import Spectrograms
from training.distances import (
    bootstrap_intervals,
    multi_resolution_stft_distance,
    spectral_convergence_db,
)
from training.metrics import (
    LinearAutoencoder,
    log_spectral_distance_db,
    mean_predictor,
    mean_squared_error_by_bin,
)
from training.originals import Originals
from training.params import Params
from training.paths import BANDS, EVALUATION, LABELS, PICTURE, SOUNDS, TEST_METRICS, checkpoint_location
from training.pictures import reconstruction_grid
from training.sound import SoundAutoencoder
from training.tracking_delivery import check_server, stage_run
from training.trained import Trained

_HEARD = 500
_BANDS = 16
# The model and PCA, by the prefixes of their figures.
_COMPARED = ("", "pca_")


@dataclass(frozen=True)
class Judged:
    """What reconstructions of the test set miss.

    Attributes
    ----------
    linear : LinearAutoencoder
        PCA of the model's size.
    by_bin : dict of ndarray, shape (n, n_bins)
        Mean squared error of each row in each frequency bin: of the model (""), PCA and the mean, by prefix.
    """

    linear: LinearAutoencoder
    by_bin: dict[str, NDArray[np.float64]]

    def mse(self, name: str) -> NDArray[np.float64]:
        """Return the mean squared error of each row, shape (n,)."""
        return np.asarray(self.by_bin[name].mean(axis=1))


def measure(sound: SoundAutoencoder, train: Spectrograms, test: Spectrograms, seed: int) -> Judged:
    """Return the errors on the test set of the model, of an equally small PCA, and of the training set's mean."""
    linear = LinearAutoencoder(train, sound.autoencoder.architecture.latent_space_dim, seed)
    mean = mean_predictor(train)
    bands: dict[str, list[NDArray[np.float64]]] = {name: [] for name in ("", "pca_", "mean_predictor_")}
    for x in test.evaluation_slices():
        bands[""].append(mean_squared_error_by_bin(x, sound.autoencoder.reconstruct(x)[0]))
        bands["pca_"].append(mean_squared_error_by_bin(x, linear.reconstruct(x)))
        bands["mean_predictor_"].append(mean_squared_error_by_bin(x, np.broadcast_to(mean, x.shape)))
    return Judged(linear, {name: np.concatenate(parts) for name, parts in bands.items()})


def hear(
    sound: SoundAutoencoder, linear: LinearAutoencoder, test: Spectrograms, corpus: Path, seed: int
) -> tuple[NDArray[np.int64], dict[str, dict[str, NDArray[np.float64]]]]:
    """Return rows of the test set, at most 500, and the distances of what they sound like from the recordings."""
    which = choose_rows(len(test), _HEARD, seed)
    clip_ids, segments, channels = test.clip_ids, test.segments.tolist(), test.channels.tolist()
    distances: dict[str, list[dict[str, NDArray[np.float64]]]] = {"": [], "pca_": []}
    originals = Originals(corpus, test.store.format.parameters)
    for start in range(0, len(which), 64):
        part = which[start : start + 64]
        x, (min_db, max_db) = test.rows(part), (values[part] for values in test.extremes_db)
        y = np.stack([originals.load(clip_ids[row], segments[row], channels[row]) for row in part])
        for name, x_hat in (("", sound.autoencoder.reconstruct(x)[0]), ("pca_", linear.reconstruct(x))):
            y_hat = sound.invert(x_hat, min_db, max_db)
            n_fft, hop_length = sound.extractor.n_fft, sound.extractor.hop_length
            distances[name].append(
                {
                    "log_spectral_distance_db": log_spectral_distance_db(y, y_hat),
                    "multi_resolution_stft": multi_resolution_stft_distance(y, y_hat),
                    "spectral_convergence_db": spectral_convergence_db(y, y_hat, n_fft, hop_length),
                }
            )
    joined = {
        name: {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for name, parts in distances.items()
    }
    return which, joined


def summarise(
    sound: SoundAutoencoder,
    test: Spectrograms,
    judged: Judged,
    heard: tuple[NDArray[np.int64], dict[str, dict[str, NDArray[np.float64]]]],
    seed: int,
) -> dict[str, Any]:
    """Return the means of all distances; those of the model, of PCA and of their difference with 95 % intervals.

    Groups are drawn, so that what is near each other counts as one; and both models are judged on the same ones, so
    that their difference is known better than either.
    """
    min_db, max_db = test.extremes_db
    width = sound.normaliser.high - sound.normaliser.low
    groups = test.groups
    which, distances = heard
    figures: dict[str, Any] = {"test_clips": len(test), "pca_components": judged.linear.n_components}
    for name in judged.by_bin:
        # A normalised difference d is d * span / width dB.
        mse_db = judged.mse(name) * ((max_db - min_db) / width) ** 2
        figures[f"{name}test_mse_db"] = float(mse_db.mean())
    figures["mean_predictor_test_mse"] = float(judged.mse("mean_predictor_").mean())

    def measures(name: str) -> dict[str, NDArray[np.float64]]:
        mse = judged.mse(name)
        return {"mse": mse, "psnr_db": 10 * np.log10(width**2 / np.maximum(mse, 1e-12)), **distances[name]}

    model, pca = (measures(name) for name in _COMPARED)
    difference = {key: values - pca[key] for key, values in model.items()}
    named = {
        f"{name}test_{key}": values
        for name, of_rows in (("", model), ("pca_", pca), ("difference_", difference))
        for key, values in of_rows.items()
    }
    # All rows are measured, and some are heard; of each, groups are drawn once for all of their figures.
    ends = _intervals({title: each for title, each in named.items() if len(each) == len(groups)}, groups, seed)
    heard_groups = [groups[row] for row in which]
    ends |= _intervals({title: each for title, each in named.items() if title not in ends}, heard_groups, seed)
    for title, values in named.items():
        figures[title] = float(values.mean())
        figures[f"{title}_low"], figures[f"{title}_high"] = ends[title]
    return figures


def _intervals(named: dict[str, NDArray[np.float64]], groups: list[str], seed: int) -> dict[str, tuple[float, float]]:
    """Return the intervals of the means of values by name, all of the same rows."""
    if not named:
        return {}
    low, high = bootstrap_intervals(np.column_stack(list(named.values())), groups, seed)
    return dict(zip(named, zip(low.tolist(), high.tolist(), strict=True), strict=True))


def write_tables(sound: SoundAutoencoder, test: Spectrograms, judged: Judged, seed: int) -> list[Path]:
    """Write errors per label and per frequency band as CSV, the model's beside PCA's, and return the files.

    Each with its 95 % interval over groups; that of a label with one group is not known.
    """
    labels, groups = (np.array([each or "" for each in of], dtype=np.str_) for of in (test.labels, test.groups))
    titles = [f"{name}test_mse{end}" for name in _COMPARED for end in ("", "_low", "_high")]
    mse = np.column_stack([judged.mse(name) for name in _COMPARED])
    with LABELS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["label", "clips", "groups", *titles])
        for label in np.unique(labels):
            rows = labels == label
            n_groups = len(np.unique(groups[rows]))
            ends = bootstrap_intervals(mse[rows], groups[rows].tolist(), seed) if n_groups > 1 else (["", ""], ["", ""])
            triples = zip(mse[rows].mean(axis=0), *ends, strict=True)
            writer.writerow([label, rows.sum(), n_groups, *chain.from_iterable(triples)])
    n_bins = judged.by_bin[""].shape[1]
    top_hz = sound.extractor.n_bins * sound.sample_rate / sound.extractor.n_fft
    bands = np.array_split(np.arange(n_bins), min(_BANDS, n_bins))
    by_band = np.column_stack([judged.by_bin[name][:, bins].mean(axis=1) for bins in bands for name in _COMPARED])
    table = np.column_stack([by_band.mean(axis=0), *bootstrap_intervals(by_band, test.groups, seed)])
    with BANDS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["frequency_hz", *titles])
        for bins, cells in zip(bands, table.reshape(len(bands), -1), strict=True):
            writer.writerow([f"{bins.mean() * top_hz / n_bins:.0f}", *cells])
    return [LABELS, BANDS]


def write_examples(sound: SoundAutoencoder, test: Spectrograms, corpus: Path, number: int) -> list[Path]:
    """Write a picture and sounds of some test clips, evenly spaced, and return the files."""
    which = np.unique(np.linspace(0, len(test) - 1, min(number, len(test)), dtype=np.int64))
    x = test.rows(which)
    x_hat, _ = sound.autoencoder.reconstruct(x)
    min_db, max_db = (values[which] for values in test.extremes_db)
    clip_ids = [test.clip_ids[place] for place in which]
    reconstruction_grid(
        PICTURE,
        sound.to_db(x, min_db, max_db),
        sound.to_db(x_hat, min_db, max_db),
        clip_ids,
        sound.extractor,
        sound.sample_rate,
    )
    originals = Originals(corpus, test.store.format.parameters)
    SOUNDS.mkdir(parents=True, exist_ok=True)
    written = [PICTURE]
    sounds = zip(
        clip_ids,
        test.segments[which].tolist(),
        test.channels[which],
        sound.invert(x_hat, min_db, max_db),
        strict=True,
    )
    # Numbered, since two ids may read the same without what a file's name cannot hold.
    for place, (clip_id, segment, channel, y_hat) in enumerate(sounds, start=1):
        original = originals.load(clip_id, segment, channel)
        stem = "".join(
            letter if letter.isalnum() or letter in "-_" else "_" for letter in Path(clip_id).with_suffix("").as_posix()
        )
        for kind, y in (("original", original), ("reconstruction", y_hat)):
            written.append(SOUNDS / f"{place:02d}_{stem}_{channel}.{kind}.wav")
            sf.write(written[-1], y, sound.sample_rate, subtype="PCM_16")
    return written


def advise(figures: Mapping[str, float]) -> str | None:
    """Return what to say of a model that has learnt nothing, or no more than PCA, or None."""
    if not figures["test_mse"] < figures["mean_predictor_test_mse"]:
        return (
            "the model is no better than the mean of the training set: give it more sounds, more epochs or fewer "
            "latent values (autoencoder.latent_space_dim)"
        )
    if figures["test_mse"] < figures["pca_test_mse"]:
        return None
    return (
        "the model is no better than PCA: more sounds would help, or fewer latent values "
        "(autoencoder.latent_space_dim), or other steps (train.learning_rate, train.epochs)"
    )


def main(arguments: argparse.Namespace) -> None:
    """Judge the trained model on the test set."""
    params = read_params(Params, arguments.params)
    check_server()
    trained = Trained.load(params)
    sound, test = trained.sound, trained.test
    EVALUATION.mkdir(parents=True, exist_ok=True)
    seed = params.train.seed
    judged = measure(sound, trained.train, test, seed)
    heard = hear(sound, judged.linear, test, Path(params.corpus.dir), seed)
    figures = summarise(sound, test, judged, heard, seed)
    TEST_METRICS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    written = write_examples(sound, test, Path(params.corpus.dir), params.evaluate.examples)
    written += write_tables(sound, test, judged, seed)
    with stage_run(trained.description.training_key, params) as (client, run):
        tracking_origin.log_data(client, run.info.run_id, params.corpus.dir, test.store)
        tracking.log_report(client, run.info.run_id, figures, written, "evaluate")
    Checkpoints(checkpoint_location(trained.description.training_key, params.resources.storage)).remove()
    print(
        "evaluate: test_mse {test_mse:.6f} (PCA of {pca_components} components {pca_test_mse:.6f}, mean predictor "
        "{mean_predictor_test_mse:.6f}) on {test_clips} clips; {test_mse_db:.1f} dB^2; log-spectral distance of the "
        "sounds {test_log_spectral_distance_db:.1f} dB (PCA {pca_test_log_spectral_distance_db:.1f})".format(**figures)
    )
    if advice := advise(figures):
        print(f"evaluate: {advice}")
    print(f"evaluate: pictures and sounds in {EVALUATION}")


if __name__ == "__main__":
    command.run(main, command.parser(__doc__).parse_args())
