"""Stage `sample_corpus`: the default corpus, notes rendered into `data/sample_corpus`."""

import argparse

from tqdm import tqdm

from pipeline import command
from pipeline.errors import CorpusError
from pipeline.params import PipelineParams, SampleCorpusSection, read_params
from pipeline.paths import SAMPLE_CORPUS
from pipeline.sample_corpus import SOUNDFONT, SOUNDFONT_LICENCE, NoteFolder, list_notes, render_corpus


def make_corpus(section: SampleCorpusSection, folder: NoteFolder) -> dict[str, int]:
    """Render what is listed, remove what no longer is, and return the counts."""
    notes = list_notes(section)
    # Refuses a folder that holds what is not ours, before anything is rendered.
    folder.list_own()
    kept: set[str] = set()
    n_written = 0
    rendered = render_corpus(notes, section.sample_rate, section.duration_s)
    for note, content in tqdm(rendered, total=len(notes), unit=" notes", desc="sample_corpus", disable=None):
        if content is not None:
            n_written += folder.put(note.clip_id, content)
            kept.add(note.clip_id)
    return {
        "written": n_written,
        "unchanged": len(kept) - n_written,
        "silent left out": len(notes) - len(kept),
        "removed": folder.remove_except(kept),
    }


def main(arguments: argparse.Namespace) -> None:
    """Make the default corpus that `params.yaml` describes."""
    section = read_params(PipelineParams, arguments.params).sample_corpus
    try:
        counts = make_corpus(section, NoteFolder(SAMPLE_CORPUS))
    except OSError as error:
        where = error.filename or SAMPLE_CORPUS
        raise CorpusError(f"{where}: cannot be read or written: {error.strerror or error}") from error
    print("sample_corpus: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    print(f"sample_corpus: rendered from {SOUNDFONT} of pretty_midi, {SOUNDFONT_LICENCE}")


if __name__ == "__main__":
    command.run(main, command.parser(__doc__).parse_args())
