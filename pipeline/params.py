"""`params.yaml`, read once into frozen, typed sections.

Every parameter must be there, under its own name and of its own type: a default that hides in code is a
parameter that `dvc params diff` cannot see. YAML 1.2 is read, as DVC does, so that `1e-5` is a number.
"""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.artifact import Dtype
from pipeline.errors import ParameterError, one_line
from pipeline.levels import Level
from pipeline.loader import Fold
from pipeline.normaliser import float16_error
from pipeline.resampler import Quality
from pipeline.storage import check_location

PARAMS_FILE = Path("params.yaml")

Pair = Annotated[tuple[float, float], Strict(False)]
Names = Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]
MidiNumbers = Annotated[tuple[Annotated[int, Strict(), Field(ge=0, le=127)], ...], Strict(False), Field(min_length=1)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1)]
# Rounding to float16 may change a value by that share of the range.
_COARSEST = 2.0**-11
Positive = Annotated[float, Field(gt=0.0)]
CountOrRange = Count | Annotated[tuple[Count, Count], Strict(False)]


class Section(BaseModel):
    """One section of `params.yaml`: frozen, typed, and without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class CorpusSection(Section):
    """Where the sounds are, and how a clip's label is read off its id."""

    dir: Annotated[str, Field(min_length=1)]
    label: str | None

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_pattern("label", self.label, group="label")
        if self.dir.startswith("~"):
            raise ValueError(f"dir={self.dir!r} must be written in full, since ~ is expanded by shells only")
        return self


class SampleCorpusSection(Section):
    """The notes of the default corpus."""

    instruments: Names
    pitches: MidiNumbers
    velocities: MidiNumbers
    sample_rate: Count
    duration_s: Positive


class PreprocessSection(Section):
    """Everything that shapes the numbers of a spectrogram."""

    sample_rate: Count
    duration_s: Positive
    mono: bool
    fold: Fold
    resampling: Quality
    trim_db: Positive | None
    min_level_db: Annotated[float, Field(le=0.0)] | None
    level: Level | None
    level_db: Annotated[float, Field(le=0.0)]
    segment: Literal["first", "all"]
    overlap: Annotated[float, Field(ge=0.0, le=0.5)]
    n_fft: Annotated[int, Field(ge=2)]
    hop_length: Count
    drop_nyquist: bool
    ref: Positive
    amin: Positive
    top_db: Positive
    range: Pair
    dtype: Dtype
    max_rejected_share: Annotated[float, Field(ge=0.0, le=1.0)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hop_length > self.n_fft:
            raise ValueError(
                f"hop_length={self.hop_length} must be at most n_fft={self.n_fft}, or samples fall between frames"
            )
        if self.n_fft % 2:
            raise ValueError(f"n_fft={self.n_fft} must be even")
        if self.duration_s * self.sample_rate < 1:
            raise ValueError(f"duration_s={self.duration_s} is less than a sample at sample_rate={self.sample_rate}")
        if self.level == "loudness" and self.duration_s < 0.4:
            raise ValueError(f"level=loudness is measured over 0.4 s, and duration_s={self.duration_s} is less")
        low, high = self.range
        if not low < high:
            raise ValueError(f"range=[{low}, {high}] must rise")
        if self.dtype == "float16" and float16_error(low, high) > _COARSEST * (high - low):
            raise ValueError(f"range=[{low}, {high}] is too far from zero for the steps of dtype=float16")
        return self


class SplitSection(Section):
    """Which clips are held out."""

    group: str | None
    test: str | None
    validation_share: Share
    test_share: Share
    seed: int

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_pattern("group", self.group, group="group")
        check_pattern("test", self.test)
        if self.validation_share + self.test_share >= 1.0:
            raise ValueError(
                f"validation_share={self.validation_share} and test_share={self.test_share} must leave something "
                "to train on"
            )
        return self


class ResourcesSection(Section):
    """Where the work runs. It never says what comes out, so no stage depends on it."""

    preprocess_workers: Literal["all"] | Count
    train_workers: CountOrRange
    cpus_per_worker: Count
    use_gpu: bool
    max_failures: Annotated[int, Field(ge=0)]
    storage: str | None
    cluster_folder: str | None

    @property
    def least_and_most_train_workers(self) -> tuple[int, int]:
        """How many training processes there may be."""
        return (self.train_workers, self.train_workers) if isinstance(self.train_workers, int) else self.train_workers

    @field_validator("train_workers")
    @classmethod
    def _check_train_workers(cls, workers: int | tuple[int, int]) -> int | tuple[int, int]:
        if not isinstance(workers, int) and workers[0] > workers[1]:
            raise ValueError(f"{list(workers)} must be the least and the most, in this order")
        return workers

    @field_validator("storage")
    @classmethod
    def _check_storage(cls, storage: str | None) -> str | None:
        if storage is not None:
            check_location(storage)
        return storage

    @field_validator("cluster_folder")
    @classmethod
    def _check_cluster_folder(cls, folder: str | None) -> str | None:
        if folder is not None and not Path(folder).is_absolute():
            raise ValueError(f"{folder!r} must be an absolute path")
        return folder


class PipelineParams(BaseModel):
    """The sections that `pipeline` reads; those of `training` are left to it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    corpus: CorpusSection
    sample_corpus: SampleCorpusSection
    preprocess: PreprocessSection
    split: SplitSection
    resources: ResourcesSection


AnyParams = TypeVar("AnyParams", bound=PipelineParams)


def check_pattern(name: str, pattern: str | None, group: str | None = None) -> None:
    """Refuse a regular expression that does not compile, or that lacks its named group."""
    if pattern is None:
        return
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name}={pattern!r} must be a regular expression: {error}") from error
    if group and group not in compiled.groupindex:
        raise ValueError(f"{name}={pattern!r} must have a group named (?P<{group}>...)")


def read_params(model: type[AnyParams], path: Path = PARAMS_FILE) -> AnyParams:
    """Read `params.yaml` into typed sections.

    Parameters
    ----------
    model : type
        The sections to read: `PipelineParams` or a subclass of it.
    path : Path
        The file.

    Raises
    ------
    ParameterError
        The file is absent or no YAML, or a parameter is missing, misspelt, of the wrong type or contradictory.
    """
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParameterError(f"{path}: cannot be read: {error.strerror}") from error
    except (YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date that no calendar has
        reason = one_line(error)
        raise ParameterError(f"{path}: is not YAML: {reason}") from error
    if not isinstance(content, dict):
        raise ParameterError(f"{path}: must hold sections of parameters, and holds {type(content).__name__}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        lines = [_describe(details, model) for details in error.errors()]
        raise ParameterError(f"{path}: " + "; ".join(lines)) from error


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested sections as one dictionary with dotted names, as `dvc params diff` writes them."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _describe(details: ErrorDetails, model: type[BaseModel]) -> str:
    """Return one pydantic error as `section.name=value: what was expected`."""
    location = [str(part) for part in details["loc"]]
    name = ".".join(location)
    if details["type"] == "missing":
        return f"{name} is missing"
    if details["type"] == "extra_forbidden":
        return f"{name} is unknown" + _suggest(location, model)
    if details["type"] == "value_error":
        reason = str(details["ctx"]["error"])
        return f"{name}: {reason}" if name else reason
    # Of a union, pydantic adds the name of the member that it tried.
    name = ".".join(part for part in location if part.isidentifier() or part.isdigit())
    expected = re.sub(r"^\w+ (?=should )", "", details["msg"])
    return f"{name}={details['input']!r} {expected}"


def _suggest(location: list[str], model: type[BaseModel]) -> str:
    """Return the known name nearest to a misspelt one, in brackets, or nothing."""
    for part in location[:-1]:
        annotation = model.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ""
        model = annotation
    nearest = difflib.get_close_matches(location[-1], model.model_fields, n=1)
    return f" (did you mean {nearest[0]}?)" if nearest else ""
