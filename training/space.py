"""What a search draws parameters from, as written on a command line: `train.learning_rate=loguniform(1e-4, 1e-2)`."""

import re
from typing import Any

from pydantic import ValidationError
from ray import tune
from ray.tune.search.sample import Categorical, Domain
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import ParameterError
from pipeline.params import flatten
from training.params import Params

_DISTRIBUTIONS = {
    "choice": lambda *values: tune.choice(list(values)),
    "uniform": tune.uniform,
    "loguniform": tune.loguniform,
    "randint": tune.randint,
    "lograndint": tune.lograndint,
}
# What the spectrograms are made by stays: a search compares trainings on the same ones.
_SECTIONS = ("autoencoder.", "train.")


def parse_space(texts: list[str], params: Params) -> dict[str, Domain]:
    """Return the distribution of each parameter by its dotted name.

    Parameters
    ----------
    texts : list of str
        `name=distribution(values)`, with Ray Tune's `choice`, `uniform`, `loguniform`, `randint` or `lograndint` (whose
        upper ends are not drawn), and values as YAML has them.
    params : Params
        Which a draw changes.

    Raises
    ------
    ParameterError
        A text is something else, or names a parameter or a value that there is not.
    """
    space = dict(_parse(text) for text in texts)
    for name, domain in space.items():
        if not name.startswith(_SECTIONS) or name not in flatten(params.model_dump()):
            raise ParameterError(f"{name} is no parameter of the sections autoencoder and train")
        for value in _extremes(domain):
            with_values(params, {name: value})
    return space


def with_values(params: Params, values: dict[str, Any]) -> Params:
    """Return parameters with some of them changed, by dotted name.

    Raises
    ------
    ParameterError
        A value is of the wrong type, or contradicts another parameter.
    """
    content = params.model_dump()
    for name, value in values.items():
        section, _, key = name.partition(".")
        # Numbers that NumPy drew are no Python numbers.
        content[section][key] = value.item() if hasattr(value, "item") else value
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        reason = "; ".join(details["msg"] for details in error.errors())
        raise ParameterError(f"{', '.join(f'{name}={value}' for name, value in values.items())}: {reason}") from error


def _extremes(domain: Any) -> list[Any]:
    """Return every value of a choice, and both ends of a range."""
    return list(domain.categories) if isinstance(domain, Categorical) else [domain.lower, domain.upper]


def _parse(text: str) -> tuple[str, Domain]:
    match = re.fullmatch(r"\s*([\w.]+)\s*=\s*(\w+)\((.*)\)\s*", text)
    if not match or match[2] not in _DISTRIBUTIONS:
        raise ParameterError(f"--space {text!r} must be name=distribution(values), of {', '.join(_DISTRIBUTIONS)}")
    try:
        return match[1], _DISTRIBUTIONS[match[2]](*YAML(typ="safe", pure=True).load(f"[{match[3]}]"))
    except (TypeError, ValueError, YAMLError) as error:
        raise ParameterError(f"--space {text!r}: {' '.join(str(error).split())}") from error
