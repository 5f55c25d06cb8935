"""What is looked at before any work: every parameter, and, where `make repro` does so, if DVC can version the corpus.

DVC reads the corpus before any stage runs, and says little where it cannot: at an empty `corpus.dir` "unexpected
error", at a name that is not UTF-8 nothing of the file, at a pipe it waits for ever.
"""

import argparse
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from pipeline import command
from pipeline.corpus import list_clips
from pipeline.errors import CorpusError
from pipeline.params import read_params
from pipeline.paths import SAMPLE_CORPUS, SPECTROGRAMS
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
    folder = Path(read_params(Params, arguments.params).corpus.dir)
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
