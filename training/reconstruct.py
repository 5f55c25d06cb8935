"""One sound through the trained model: `python -m training.reconstruct IN.wav OUT.wav`. No server, no store."""

import argparse
from pathlib import Path

import soundfile as sf

from pipeline import command
from pipeline.errors import AudioError
from training.paths import MODEL
from training.sound import SoundAutoencoder


def main(arguments: argparse.Namespace) -> None:
    """Reconstruct one recording, of any rate and length."""
    sound = SoundAutoencoder.load(arguments.model)
    try:
        recording = sound.whole_loader().load(arguments.source)
    except AudioError as error:
        raise AudioError(error.reason, f"{arguments.source}: {error.detail}") from error
    y_hat = sound.reconstruct(recording.y)
    try:
        sf.write(arguments.target, y_hat.T, sound.sample_rate, subtype="PCM_16", format="WAV")
    except (OSError, sf.LibsndfileError) as error:
        raise AudioError("unwritable", f"{arguments.target}: {error}") from error
    print(f"reconstruct: {arguments.target}, {y_hat.shape[1] / sound.sample_rate:.2f} s at {sound.sample_rate} Hz")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, help="a recording in any format that libsndfile reads")
    parser.add_argument("target", type=Path, help="the WAV file to write")
    parser.add_argument("--model", type=Path, default=MODEL, help="the folder of the model (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    command.run(main, parser.parse_args())
