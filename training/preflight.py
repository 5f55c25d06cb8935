"""What is looked at before any work: every parameter, and whether the network fits the spectrograms.

Where `make repro` does so, whether DVC can version the corpus, too.

DVC reads the corpus before any stage runs, and says little where it cannot: at an empty `corpus.dir` "unexpected
error", at a name that is not UTF-8 nothing of the file, at a pipe it waits for ever.
"""

import argparse
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pipeline import command
from pipeline.corpus import list_clips
from pipeline.errors import CorpusError, ParameterError
from pipeline.loader import count_samples
from pipeline.params import read_params
from pipeline.paths import SAMPLE_CORPUS, SPECTROGRAMS
from pipeline.spectrogram import LogSpectrogramExtractor
from training.params import Params


def check_corpus(folder: Path) -> list[str]:
    """Refuse a folder that DVC cannot version, and return links to folders in it, behind which DVC does not look.

    Raises
    ------
    CorpusError
        The folder is missing, is none, holds no audio, or what the pipeline makes, or something that DVC cannot read.
    """
    list_clips(folder)
    if SPECTROGRAMS.resolve().is_relative_to(folder.resolve()):
        raise CorpusError(f"corpus folder {str(folder)!r} holds {SPECTROGRAMS}, which is made from it; choose another")
    found = sorted((_shown(os.path.relpath(path, folder)), problem) for path, problem in _walk(folder))
    if unreadable := [(name, problem) for name, problem in found if problem]:
        name, problem = unreadable[0]
        raise CorpusError(
            f"corpus folder {str(folder)!r} holds {len(unreadable)} entries that DVC cannot version; the first is "
            f"{name}: {problem}; rename or remove it"
        )
    return [name for name, _ in found]


def check_shape(params: Params) -> None:
    """Refuse spectrograms that the network's strides do not divide, before they are made.

    Raises
    ------
    ParameterError
    """
    wanted, strides = params.preprocess, params.autoencoder.conv_strides
    extractor = LogSpectrogramExtractor(wanted.n_fft, wanted.hop_length, wanted.drop_nyquist)
    made = extractor.n_bins, extractor.n_frames(count_samples(wanted.duration_s, wanted.sample_rate))
    shape = params.train.target_shape or made
    for axis, name in enumerate(("bins", "frames")):
        product = math.prod(each if isinstance(each, int) else each[axis] for each in strides)
        if not shape[axis] % product:
            continue
        ways = "change conv_strides, or set train.target_shape to what spectrograms are to be resized to"
        if shape is not made:
            ways = f"change one of them; {made[0]} bins and {made[1]} frames are made"
        elif name == "frames":
            step_s = wanted.hop_length / wanted.sample_rate
            fitting = (product * (shape[1] // product + more) for more in (0, 1))
            # The middle of what makes that many frames, to as many digits as that wants.
            some = (f"{(n - 0.5) * step_s:.{math.ceil(-math.log10(step_s / 2))}f}" for n in fitting if n)
            ways = f"preprocess.duration_s: {' or '.join(some)} would fit; or {ways}"
        source = "preprocess makes" if shape is made else "train.target_shape has"
        raise ParameterError(
            f"{source} {shape[axis]} {name}, no multiple of {product}, the product of autoencoder.conv_strides along "
            f"{name}: {ways}"
        )


def _walk(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield each path that DVC cannot read, with what is wrong, and each link to a folder, with nothing."""
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            try:
                name.encode()
                mode = os.stat(path).st_mode
            except UnicodeEncodeError:
                yield path, "its name is not UTF-8"
            except OSError as error:
                yield path, f"it is a link that leads nowhere: {error.strerror}"
            else:
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    yield path, "it is neither a file nor a folder"
                elif stat.S_ISDIR(mode) and Path(path).is_symlink():
                    yield path, ""


def _shown(path: str) -> str:
    r"""Return a path as it can be printed, in quotes: bytes that are not UTF-8 stand as `\xNN`, as in a clip's id."""
    return f"'{os.fsencode(path).decode('utf-8', 'backslashreplace')}'"


def main(arguments: argparse.Namespace) -> None:
    """Look at parameters and corpus, and print what a person should know of them."""
    params = read_params(Params, arguments.params)
    check_shape(params)
    folder = Path(params.corpus.dir)
    if arguments.parameters:
        return
    # The sample corpus is made when it is not there.
    if folder.absolute() == SAMPLE_CORPUS.absolute() and not folder.exists():
        return
    if links := check_corpus(folder):
        print(
            f"preflight: {len(links)} links to folders in corpus folder {str(folder)!r}, the first {links[0]}: their "
            "sounds are used, and DVC does not see when they change; `dvc repro --force preprocess` then"
        )


if __name__ == "__main__":
    parser = command.parser(__doc__)
    parser.add_argument("--parameters", action="store_true", help="look at the parameters alone")
    command.run(main, parser.parse_args())
