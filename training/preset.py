"""Parameters that go together: `python -m training.preset NAME` writes those of `presets/NAME.yaml` into `params.yaml`.

All else in that file stays as it is, to the byte, where each value that changes stands on one line; where one does not,
lists may be laid out anew.
"""

import argparse
import io
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import command
from pipeline.errors import ParameterError
from pipeline.params import flatten, read_params
from training.params import Params

PRESETS = Path("presets")


def apply(preset: Path, params: Path) -> dict[str, object]:
    """Write a preset's parameters over those of a file.

    Parameters
    ----------
    preset, params : Path

    Returns
    -------
    dict
        The new values of what has changed, by dotted name.

    Raises
    ------
    ParameterError
        The file of parameters cannot be used, before or after; it then stays as it was.
    """
    before = flatten(read_params(Params, params).model_dump(mode="json"))
    text = _edit(params.read_text(encoding="utf-8"), preset.read_text(encoding="utf-8"))
    changed = params.with_name(f".{params.name}.partial")
    try:
        changed.write_text(text, encoding="utf-8")
        after = flatten(read_params(Params, changed).model_dump(mode="json"))
        if after != before:
            changed.replace(params)
    finally:
        changed.unlink(missing_ok=True)
    return {name: value for name, value in after.items() if before[name] != value}


def _edit(text: str, preset: str) -> str:
    """Return a file's text with the values of a preset."""
    yaml = YAML()  # keeps comments and order, and knows where things stand
    yaml.width, yaml.preserve_quotes = 120, True
    yaml.representer.add_representer(type(None), _represent_null)
    content, wanted = yaml.load(text), yaml.load(preset)
    lines, source = text.splitlines(keepends=True), preset.splitlines()
    for section, values in wanted.items():
        for name in (name for name, value in values.items() if content[section][name] != value):
            (row, column), (from_row, from_column) = content[section].lc.value(name), values.lc.value(name)
            # A comment stays; it is not part of what is said here.
            end = re.search(r"\s+#.*\s*$|\s*$", lines[row][column:])
            lines[row] = lines[row][:column] + source[from_row][from_column:].rstrip() + (end[0] if end else "")
        content[section].update(values)
    edited = "".join(lines)
    if _values(edited) == content:
        return edited
    stream = io.StringIO()
    yaml.dump(content, stream)
    return stream.getvalue()


def _values(text: str) -> Any:
    """Return what a file says; None where that is nothing."""
    try:
        return YAML(typ="safe").load(text)
    except YAMLError:
        return None


def _represent_null(representer: Any, _: None) -> Any:
    """Write null as a word, and not as nothing."""
    return representer.represent_scalar("tag:yaml.org,2002:null", "null")


def main(arguments: argparse.Namespace) -> None:
    """Write a preset into `params.yaml`, and say what has changed."""
    preset = PRESETS / f"{arguments.name}.yaml"
    if not preset.is_file():
        known = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml")))
        raise ParameterError(f"preset {arguments.name!r} is none of {known or f'those in {PRESETS}, which has none'}")
    changed = apply(preset, arguments.params)
    for name, value in changed.items():
        print(f"preset: {name}: {value}")
    print(f"preset: {len(changed)} parameters of {arguments.params} changed")


if __name__ == "__main__":
    parser = command.parser(__doc__)
    parser.add_argument("name", help="laptop, seed or gpu: a file in presets/")
    command.run(main, parser.parse_args())
