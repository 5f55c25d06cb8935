"""Stage `generate`: sounds that nobody recorded, from the latent space, into the MLflow run and `reports/generate`."""

import argparse
import csv
import json
import shutil
from dataclasses import dataclass

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from pipeline import command
from pipeline.params import read_params
from training import tracking
from training.codes import FITTED_ROWS, Codes, choose_rows, encode
from training.dataset import Spectrograms
from training.density import Density
from training.distances import frechet_distance, log_mel_statistics, nearest
from training.generation import choose_moves, choose_pairs, interpolate, label_means, map_codes, move
from training.metrics import LinearAutoencoder
from training.params import GenerateSection, Params
from training.paths import CODES, DENSITIES, GENERATED_SOUNDS, GENERATION, GENERATION_METRICS, MAP, MODEL
from training.sound import SoundAutoencoder, below_full_scale
from training.tracking_delivery import check_server, stage_run
from training.trained import Trained

_JUDGED = 500
Row = tuple[str, int, int]


@dataclass(frozen=True)
class Made:
    """Sounds of one kind: their codes, and for each its file, where it came from and how far along."""

    kind: str
    codes: Codes
    names: list[str]
    sources: list[Row]
    targets: list[str]
    shares: list[float]


def rows_of(spectrograms: Spectrograms) -> list[Row]:
    """Return clip, segment and channel of each row."""
    return list(zip(spectrograms.clip_ids, spectrograms.segments.tolist(), spectrograms.channels.tolist(), strict=True))


def make(section: GenerateSection, density: Density, test: Spectrograms, held_out: Codes, train: "Known") -> list[Made]:
    """Return samples, interpolations between held-out clips, and held-out clips moved from label to label."""
    rng = np.random.default_rng(section.seed)
    rows, n = rows_of(test), section.count
    made = [
        Made(
            "sample",
            density.sample(n, section.seed),
            [f"sample_{number:03d}" for number in range(1, n + 1)],
            [("", 0, 0)] * n,
            [""] * n,
            [0.0] * n,
        )
    ]
    steps = section.interpolation_steps
    for number, (first, second) in enumerate(choose_pairs(len(test), section.interpolations, rng), start=1):
        made.append(
            Made(
                "interpolation",
                interpolate(held_out.take(np.array([first])), held_out.take(np.array([second])), steps),
                [f"interpolation_{number:02d}_{step:02d}" for step in range(1, steps + 1)],
                [rows[first]] * steps,
                [rows[second][0]] * steps,
                np.linspace(0, 1, steps).tolist(),
            )
        )
    means = label_means(train.codes.z, train.labels)
    moves = choose_moves(test.labels, list(means), section.arithmetic, rng)
    if moves:
        made.append(
            Made(
                "arithmetic",
                move(held_out, moves, means),
                [f"arithmetic_{number:02d}" for number in range(1, len(moves) + 1)],
                [rows[each.row] for each in moves],
                [each.target for each in moves],
                [1.0] * len(moves),
            )
        )
    return made


@dataclass(frozen=True)
class Known:
    """Codes of what was trained on, or of some of it, with names and labels."""

    codes: Codes
    rows: list[Row]
    labels: list[str | None]


def known(sound: SoundAutoencoder, train: Spectrograms, seed: int) -> Known:
    """Return the codes of the training set, of at most as many rows as PCA is fitted on."""
    chosen = choose_rows(len(train), FITTED_ROWS, seed)
    rows, labels = rows_of(train), train.labels
    return Known(
        encode(sound.autoencoder, train, chosen), [rows[row] for row in chosen], [labels[row] for row in chosen]
    )


def write(sound: SoundAutoencoder, made: list[Made], train: Known) -> None:
    """Write each sound as WAV, and the table of their codes, with the nearest training clip of each."""
    shutil.rmtree(GENERATED_SOUNDS, ignore_errors=True)
    GENERATED_SOUNDS.mkdir(parents=True)
    with CODES.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        latent = [f"z_{number}" for number in range(train.codes.z.shape[1])]
        origin = ["source", "source_segment", "source_channel", "target", "share"]
        neighbour = ["nearest", "nearest_segment", "nearest_channel", "nearest_distance"]
        writer.writerow(["file", "kind", *origin, *neighbour, "min_db", "max_db", *latent])
        for each in made:
            place, distance = nearest(each.codes.z, train.codes.z)
            y = sound.invert(sound.autoencoder.decode(each.codes.z), each.codes.min_db, each.codes.max_db)
            for row, name in enumerate(each.names):
                path = GENERATED_SOUNDS / f"{name}.wav"
                sf.write(path, below_full_scale(y[row]), sound.sample_rate, subtype="PCM_16")
                levels = each.codes.min_db[row], each.codes.max_db[row]
                writer.writerow(
                    [f"{name}.wav", each.kind, *each.sources[row], each.targets[row], f"{each.shares[row]:.4f}"]
                    + [*train.rows[place[row]], f"{distance[row]:.6g}"]
                    + [f"{value:.6g}" for value in (*levels, *each.codes.z[row])]
                )


def write_map(sound: SoundAutoencoder, clips: Spectrograms, section: GenerateSection) -> None:
    """Write two coordinates of clips, at most `map_clips`, chosen by the seed."""
    rows = choose_rows(len(clips), section.map_clips, section.seed)
    points = map_codes(encode(sound.autoencoder, clips, rows).z, section.seed)
    names, labels = rows_of(clips), clips.labels
    with MAP.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["clip", "clip_segment", "clip_channel", "label", "x", "y"])
        for row, (x, y) in zip(rows, points, strict=True):
            writer.writerow([*names[row], labels[row] or "", f"{x:.4f}", f"{y:.4f}"])


def write_densities(density: Density) -> dict[str, float]:
    """Write how likely held-out rows were to each candidate, in nats; return it of the best of each family."""
    with DENSITIES.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["density", "held_out_log_likelihood", "chosen"])
        for (kind, size), score in density.scores.items():
            writer.writerow([f"{kind} {size}", f"{score:.4f}", int((kind, size) == density.kind)])
    return {f"held_out_log_likelihood_{family}": score for family, score in density.family_scores.items()}


def judge(
    sound: SoundAutoencoder,
    density: Density,
    train: Spectrograms,
    test: Spectrograms,
    codes: tuple[Codes, Codes],
    seed: int,
) -> dict[str, float]:
    """Return whether samples copy what was trained on, and how far they are from sounds that were held out.

    Distances between sets are Fréchet distances of log-mel statistics, each set having as many sounds: samples of the
    model's density, of a density fitted in the same way to PCA's components, white noise at the levels of the
    held-out sounds, and, as the least that can be asked, training clips.
    """
    of_train, of_test = codes
    rows = choose_rows(len(test), _JUDGED, seed)
    n = len(rows)
    samples = density.sample(n, seed + 1)
    _, sample_distance = nearest(samples.z, of_train.z)
    _, held_out_distance = nearest(of_test.z[rows], of_train.z)
    figures = {
        "sample_nearest_distance": float(np.median(sample_distance)),
        "held_out_nearest_distance": float(np.median(held_out_distance)),
    }

    def features(x: NDArray[np.float32], levels: Codes) -> NDArray[np.float64]:
        S_db = sound.to_db(x, levels.min_db, levels.max_db)
        return log_mel_statistics(sound.extractor.magnitude(S_db), sound.sample_rate)

    held_out = features(test.rows(rows), of_test.take(rows))
    linear = LinearAutoencoder(train, sound.autoencoder.architecture.latent_space_dim, seed)
    linear_rows = choose_rows(len(train), FITTED_ROWS, seed)
    groups = train.groups
    components = np.concatenate([linear.encode(x) for x in train.evaluation_slices(which=linear_rows)])
    min_db, max_db = train.extremes_db
    linear_density = Density.fit(
        components, min_db[linear_rows], max_db[linear_rows], seed, [groups[row] for row in linear_rows]
    )
    linear_samples = linear_density.sample(n, seed + 1)
    rng = np.random.default_rng(seed)
    noise, _, _ = sound.normaliser.normalise(
        sound.extractor.extract(rng.normal(size=(n, sound.loader.n_samples)).astype(np.float32))
    )
    others = np.sort(rng.permutation(len(train))[:n])
    sets = {
        "samples": features(sound.autoencoder.decode(samples.z), samples),
        "pca_samples": features(linear.decode(linear_samples.z, train.shape), linear_samples),
        "white_noise": features(noise[..., None], of_test.take(rows)),
        "train": features(train.rows(others), Codes(components[:0], min_db[others], max_db[others])),
    }
    return figures | {f"frechet_{name}": frechet_distance(each, held_out) for name, each in sets.items()}


def main(arguments: argparse.Namespace) -> None:
    """Make new sounds, and judge them."""
    params = read_params(Params, arguments.params)
    check_server()
    section = params.generate
    trained, density = Trained.load(params), Density.load(MODEL)
    sound, train, test = trained.sound, trained.train, trained.test
    of_train, of_test = known(sound, train, section.seed), encode(sound.autoencoder, test)
    GENERATION.mkdir(parents=True, exist_ok=True)
    made = make(section, density, test, of_test, of_train)
    write(sound, made, of_train)
    write_map(sound, Spectrograms(test.store, None, params.train.target_shape), section)
    figures = judge(sound, density, train, test, (of_train.codes, of_test), section.seed)
    figures |= write_densities(density)
    GENERATION_METRICS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    files = [GENERATED_SOUNDS / f"{name}.wav" for each in made for name in each.names]
    with stage_run(trained.description.training_key, params) as (client, run):
        tracking.log_report(client, run.info.run_id, figures, [CODES, DENSITIES, *files], "generate")
    print(
        "generate: {0} sounds in {1}; to held-out ones {frechet_samples:.1f} (PCA's samples {frechet_pca_samples:.1f}, "
        "training clips {frechet_train:.1f}, white noise {frechet_white_noise:.1f}); to the nearest training clip "
        "{sample_nearest_distance:.3g} (held-out clips {held_out_nearest_distance:.3g})".format(
            len(files), GENERATED_SOUNDS, **figures
        )
    )


if __name__ == "__main__":
    command.run(main, command.parser(__doc__).parse_args())
