"""Stage `evaluate`: the trained model on sounds that it has never heard, into its MLflow run and `reports/evaluate`."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from pipeline import command
from pipeline.corpus import list_clips
from pipeline.errors import CorpusError, StoreError
from pipeline.params import read_params
from pipeline.paths import SPECTROGRAMS, TABLE
from training import tracking, tracking_origin
from training.checkpoint import Checkpoints
from training.dataset import Spectrograms, load_spectrograms
from training.description import Description
from training.metrics import LinearAutoencoder, mean_predictor, mean_squared_error
from training.params import Params
from training.paths import CHECKPOINTS, CURVES, EVALUATION, MODEL, PICTURE, SOUNDS, TEST_METRICS
from training.pictures import reconstruction_grid
from training.progress import read_curves
from training.sound import SoundAutoencoder


def measure(sound: SoundAutoencoder, train: Spectrograms, test: Spectrograms, seed: int) -> dict[str, float]:
    """Return the errors on the test set of the model, of an equally small PCA, and of the training set's mean."""
    linear = LinearAutoencoder(train, sound.autoencoder.architecture.latent_space_dim, seed)
    mean = mean_predictor(train)
    span_db = test.extremes_db[1] - test.extremes_db[0]
    errors: dict[str, list[NDArray[np.float64]]] = {"": [], "mean_predictor_": [], "pca_": []}
    for x in test.evaluation_slices():
        errors[""].append(mean_squared_error(x, sound.autoencoder.reconstruct(x)[0]))
        errors["mean_predictor_"].append(mean_squared_error(x, np.broadcast_to(mean, x.shape)))
        errors["pca_"].append(mean_squared_error(x, linear.reconstruct(x)))
    width = sound.normaliser.high - sound.normaliser.low
    figures: dict[str, float] = {"test_clips": len(test), "pca_components": linear.n_components}
    for name, parts in errors.items():
        per_row = np.concatenate(parts)
        figures[f"{name}test_mse"] = float(per_row.mean())
        # A normalised difference d is d * span / width dB.
        figures[f"{name}test_mse_db"] = float((per_row * (span_db / width) ** 2).mean())
    return figures


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
    paths = {clip.clip_id: clip.path for clip in list_clips(corpus).clips}
    SOUNDS.mkdir(parents=True, exist_ok=True)
    written = [PICTURE]
    sounds = zip(
        clip_ids,
        test.segments[which].tolist(),
        test.channels[which],
        sound.invert(x_hat, min_db, max_db),
        strict=True,
    )
    n_overlap = int(test.store.format.parameters["overlap"] * sound.loader.n_samples)
    # Numbered, since two ids may read the same without what a file's name cannot hold.
    for place, (clip_id, segment, channel, y_hat) in enumerate(sounds, start=1):
        if clip_id not in paths:
            raise CorpusError(
                f"corpus folder {str(corpus)!r} no longer holds {clip_id!r}; run the preprocess stage again"
            )
        original = sound.loader.load_segment(paths[clip_id], segment, n_overlap)[channel]
        stem = "".join(
            letter if letter.isalnum() or letter in "-_" else "_" for letter in Path(clip_id).with_suffix("").as_posix()
        )
        for kind, y in (("original", original), ("reconstruction", y_hat)):
            written.append(SOUNDS / f"{place:02d}_{stem}_{channel}.{kind}.wav")
            sf.write(written[-1], y, sound.sample_rate, subtype="PCM_16")
    return written


def main(arguments: argparse.Namespace) -> None:
    """Judge the trained model on the test set."""
    params = read_params(Params, arguments.params)
    description = Description.load(MODEL)
    sound = SoundAutoencoder.load(MODEL)
    train = load_spectrograms(SPECTROGRAMS, TABLE, "train", params.train.target_shape)
    test = load_spectrograms(SPECTROGRAMS, TABLE, "test", params.train.target_shape)
    if description.data_digest != test.store.digest:
        raise StoreError(
            f"{MODEL} was trained on other spectrograms than {SPECTROGRAMS} holds; run the train stage again"
        )
    if not len(test):
        raise CorpusError(
            f"no clip is held out for the test: split.test={params.split.test!r}, "
            f"split.test_share={params.split.test_share}"
        )
    EVALUATION.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = measure(sound, train, test, params.train.seed)
    TEST_METRICS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    written = write_examples(sound, test, Path(params.corpus.dir), params.evaluate.examples)
    with (
        tracking.connect() as client,
        tracking.same_run(client, description.training_key, read_curves(CURVES), params) as run,
    ):
        tracking_origin.log_data(client, run.info.run_id, params.corpus.dir, test.store)
        tracking.log_evaluation(client, run.info.run_id, figures, written)
    Checkpoints(CHECKPOINTS.absolute() / description.training_key).remove()
    print(
        "evaluate: test_mse {test_mse:.6f} (PCA of {pca_components} components {pca_test_mse:.6f}, mean predictor "
        "{mean_predictor_test_mse:.6f}) on {test_clips} clips; {test_mse_db:.1f} dB^2".format(**figures)
    )
    print(f"evaluate: pictures and sounds in {EVALUATION}")


if __name__ == "__main__":
    command.run(main, command.parser(__doc__).parse_args())
