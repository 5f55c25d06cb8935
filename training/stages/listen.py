"""Stage `listen`: one self-contained page of sounds, spectrograms and a map, `reports/listen.html`."""

import argparse
import csv
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf
from numpy.typing import NDArray

from pipeline import command
from pipeline.params import read_params
from pipeline.spectrogram import LogSpectrogramExtractor
from training import tracking
from training.description import Description
from training.originals import Originals
from training.page import SoundWriter, figure_rows, label_colours, map_svg, render
from training.params import Params
from training.paths import CODES, GENERATED_SOUNDS, MAP, MODEL, PAGE, SOUNDS, TEST_METRICS
from training.tracking_delivery import stage_run


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_wav(path: Path) -> NDArray[np.float32]:
    """Return the first channel of a sound that a stage wrote."""
    y: NDArray[np.float32] = sf.read(path, dtype="float32", always_2d=True)[0][:, 0]
    return y


def pairs(writer: SoundWriter) -> list[dict[str, Any]]:
    """Return the originals and reconstructions of the evaluation."""
    found = []
    for original in sorted(SOUNDS.glob("*.original.wav")):
        stem = original.name.removesuffix(".original.wav")
        reconstruction = original.with_name(f"{stem}.reconstruction.wav")
        title = stem.partition("_")[2].rpartition("_")[0]
        sounds = [
            writer.sound(read_wav(path), name)
            for path, name in ((original, "original"), (reconstruction, "reconstruction"))
        ]
        found.append({"title": title, "first": sounds[0], "second": sounds[1]})
    return found


def generated(writer: SoundWriter, originals: Originals) -> dict[str, list[dict[str, Any]]]:
    """Return samples with their nearest clips, interpolations step by step, and clips moved between labels."""
    lines = [(line, writer.sound(read_wav(GENERATED_SOUNDS / line["file"]))) for line in read_table(CODES)]
    of_kind = {
        kind: [each for each in lines if each[0]["kind"] == kind] for kind in ("sample", "interpolation", "arithmetic")
    }
    samples = [
        {
            "title": f"sample {number}",
            "sound": sound,
            "nearest": {"title": line["nearest"], "audio": writer.audio(originals.load(*_row(line, "nearest")))},
        }
        for number, (line, sound) in enumerate(of_kind["sample"], start=1)
    ]
    interpolations = []
    for _, group in groupby(of_kind["interpolation"], key=lambda each: each[0]["file"].rpartition("_")[0]):
        steps = list(group)
        first = steps[0][0]
        interpolations.append(
            {
                "source": first["source"],
                "target": first["target"],
                "steps": [{**sound, "share": float(line["share"])} for line, sound in steps],
            }
        )
    moves = [
        {
            "title": f"{line['source']} as {line['target']}",
            "first": writer.sound(originals.load(*_row(line, "source")), "original"),
            "second": {**sound, "title": f"as {line['target']}"},
        }
        for line, sound in of_kind["arithmetic"]
    ]
    return {"samples": samples, "interpolations": interpolations, "moves": moves}


def mapped(writer: SoundWriter, originals: Originals) -> tuple[dict[str, Any], str]:
    """Return the points of the map with their sounds, the labels' colours, and the drawing."""
    lines = read_table(MAP)
    colours = label_colours([line["label"] for line in lines])
    points = [
        {
            "title": line["clip"],
            "label": line["label"],
            "x": float(line["x"]),
            "y": float(line["y"]),
            "audio": writer.audio(originals.load(*_row(line, "clip"))),
        }
        for line in lines
    ]
    places = np.array([(point["x"], point["y"]) for point in points], dtype=np.float64).reshape(-1, 2)
    svg = map_svg(places, [colours[line["label"]] for line in lines])
    return {"points": points, "labels": list(colours.items()) if len(colours) > 1 else []}, svg


def _row(line: dict[str, str], name: str) -> tuple[str, int, int]:
    """Return the clip, segment and channel of a row that a table names."""
    return line[name], int(line[f"{name}_segment"]), int(line[f"{name}_channel"])


def main(arguments: argparse.Namespace) -> None:
    """Write the page, and log it."""
    params = read_params(Params, arguments.params)
    description = Description.load(MODEL)
    wanted = description.preprocessing
    extractor = LogSpectrogramExtractor(
        *(wanted[name] for name in ("n_fft", "hop_length", "drop_nyquist", "ref", "amin", "top_db"))
    )
    writer = SoundWriter(extractor.extract, wanted["sample_rate"])
    originals = Originals(Path(params.corpus.dir), wanted)
    figures = json.loads(TEST_METRICS.read_text(encoding="utf-8"))
    on_map, svg = mapped(writer, originals)
    content = {
        "about": f"What an autoencoder with {params.autoencoder.latent_space_dim} latent values hears and makes. "
        f"Training {description.training_key[:8]}.",
        "extent": f"{wanted['duration_s']} s, 0 to {wanted['sample_rate'] / 2000:g} kHz.",
        "pairs": pairs(writer),
        "figures": figure_rows(figures),
        **generated(writer, originals),
        **on_map,
    }
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(render(content, svg), encoding="utf-8")
    with stage_run(description.training_key, params) as (client, run):
        tracking.log_report(client, run.info.run_id, {}, [PAGE], None)
    print(f"listen: {PAGE}, {PAGE.stat().st_size / 2**20:.1f} MiB; open it in a browser")


if __name__ == "__main__":
    command.run(main, command.parser(__doc__).parse_args())
