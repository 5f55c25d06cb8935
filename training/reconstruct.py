"""Sounds through the trained model: `python -m training.reconstruct IN.wav OUT.wav`, or two folders. No server.

From a folder, every recording below it goes to the same place in the other, as a WAV file of the same name.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import soundfile as sf

from pipeline import command
from pipeline.corpus import list_clips
from pipeline.errors import AudioError, CorpusError, ParameterError
from training.paths import MODEL
from training.sound import SoundAutoencoder


def reconstruct_file(sound: SoundAutoencoder, source: Path, target: Path) -> None:
    """Reconstruct one recording, of any rate and length.

    Raises
    ------
    AudioError
        It cannot be read, or what came of it cannot be written.
    """
    try:
        recording = sound.whole_loader().load(source)
    except AudioError as error:
        raise AudioError(error.reason, f"{source}: {error.detail}") from error
    y_hat = sound.reconstruct(recording.y)
    try:
        sf.write(target, y_hat.T, sound.sample_rate, subtype="PCM_16", format="WAV")
    except (OSError, sf.LibsndfileError) as error:
        raise AudioError("unwritable", f"{target}: {error}") from error
    print(f"reconstruct: {target}, {y_hat.shape[1] / sound.sample_rate:.2f} s at {sound.sample_rate} Hz", flush=True)


def reconstruct_folder(sound: SoundAutoencoder, source: Path, target: Path) -> None:
    """Reconstruct every recording below a folder; one that cannot be is a line, and the others are done.

    Raises
    ------
    ParameterError
        One folder lies in the other, so that what comes out would be taken for what goes in.
    CorpusError
        There is no recording, or some could not be reconstructed.
    """
    here, there = source.resolve(), target.resolve()
    if here in (there, *there.parents) or there in here.parents:
        raise ParameterError(f"{target}: must be a folder apart from {source}, whose recordings stay as they are")
    corpus = list_clips(source)
    failed = len(corpus.rejected)
    for rejection in corpus.rejected:
        print(f"error: {rejection.reason}: {source / rejection.clip_id}: {rejection.detail}", file=sys.stderr)
    names = name_targets([clip.clip_id for clip in corpus.clips])
    for clip, name in zip(corpus.clips, names, strict=True):
        try:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            reconstruct_file(sound, Path(clip.path), target / name)
        except (AudioError, OSError) as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
    if failed:
        raise CorpusError(f"{failed} of {len(corpus.clips) + len(corpus.rejected)} recordings are not reconstructed")


def name_targets(clip_ids: list[str]) -> list[str]:
    """Return the names of WAV files for recordings, no two the same: `kick.flac` is `kick.wav`.

    Where two would have one name, or differ only in case, all but WAV files keep their suffix: `kick.flac.wav`.
    """
    plain = [Path(clip_id).with_suffix(".wav").as_posix() for clip_id in clip_ids]
    wanted = Counter(name.lower() for name in plain)
    taken = {clip_id.lower() for clip_id in clip_ids if clip_id.lower().endswith(".wav")}
    names = []
    for clip_id, name in zip(clip_ids, plain, strict=True):
        chosen = name if wanted[name.lower()] == 1 else f"{clip_id}.wav"
        if clip_id.lower().endswith(".wav"):
            chosen = clip_id
        else:
            while chosen.lower() in taken:
                chosen = f"{chosen}.wav"
        taken.add(chosen.lower())
        names.append(chosen)
    return names


def main(arguments: argparse.Namespace) -> None:
    """Reconstruct a recording, or a folder of them."""
    is_folder = arguments.source.is_dir()
    sound = SoundAutoencoder.load(arguments.model, compiled=is_folder)
    (reconstruct_folder if is_folder else reconstruct_file)(sound, arguments.source, arguments.target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "source", type=Path, help="a recording in any format that libsndfile reads, or a folder of them"
    )
    parser.add_argument("target", type=Path, help="the WAV file to write, or the folder to write them into")
    parser.add_argument("--model", type=Path, default=MODEL, help="the folder of the model (default: %(default)s)")
    parser.add_argument("--verbose", action="store_true", help="show the traceback of an error")
    command.run(main, parser.parse_args())
