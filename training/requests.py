"""What a served model is asked for, field by field, and what is wrong with what it is not asked well. Pydantic only.

One class per task, each with the fields that the task takes; `Request` has all of them, for MLflow's signature.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    SkipValidation,
    ValidationError,
    create_model,
    model_serializer,
    model_validator,
)

from pipeline.errors import GenerativeMusicError

Vector = list[float]
Matrix = list[list[float]]

_AUDIO = "Bytes of a file that libsndfile reads (WAV, FLAC, OGG, MP3, ...) in base64. Any rate, channels, length."
_SPECTROGRAM = "Instead of audio: (n_bins, n_frames) in dB, as the model's preprocessing makes it of one segment."


class RequestError(GenerativeMusicError):
    """A request cannot be answered.

    Parameters
    ----------
    field : str
        As in `inputs[0].audio`.
    reason : str
        What was given, and what was expected.
    """

    def __init__(self, field: str, reason: str) -> None:
        # In one line, whatever a library said.
        super().__init__(" ".join(f"{field}: {reason}".split()))
        self.field = field
        self.reason = reason


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class OneSound(_Fields):
    """What every task on a sound takes."""

    audio: str | None = Field(None, description=_AUDIO)
    spectrogram: Matrix | None = Field(None, description=_SPECTROGRAM)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _want_one(self, "audio", "spectrogram")
        return self


class Reconstruct(OneSound):
    """A sound through the network and back."""

    task: Literal["reconstruct"]


class Encode(OneSound):
    """A sound's latent vectors."""

    task: Literal["encode"]


class Decode(_Fields):
    """The sound of latent vectors. What `encode` replies can be given as it is."""

    task: Literal["decode"]
    latent: Matrix = Field(min_length=1, description="One vector per segment, in order.")
    min_db: Vector | None = Field(None, description="Of each segment; by default max_db less the model's top_db.")
    max_db: Vector | None = Field(None, description="Of each segment; by default that of a sine of half of full scale.")
    channel: list[int] | None = Field(None, description="Of each segment; by default there is one channel.")
    start_s: Vector | None = Field(None, description="Of each segment, which follows from their order.")
    duration_s: float | None = Field(
        None, gt=0, le=1e6, description="Of the sound; by default up to the last segment's end."
    )


class Generate(_Fields):
    """New sounds, drawn from what the model has learnt."""

    task: Literal["generate"]
    count: int = Field(1, ge=1, le=1_000_000, description="How many sounds.")
    seed: int = Field(0, ge=0, lt=2**63, description="The same count and seed give the same sounds.")


class Interpolate(OneSound):
    """Sounds on the way from one to another."""

    task: Literal["interpolate"]
    audio_to: str | None = Field(None, description="Where the way ends, as `audio`.")
    spectrogram_to: Matrix | None = Field(None, description="Where the way ends, as `spectrogram`.")
    steps: int = Field(5, ge=2, le=1_000_000, description="How many sounds, the first and the last included.")

    @model_validator(mode="after")
    def _check_to(self) -> Self:
        _want_one(self, "audio_to", "spectrogram_to")
        return self


TASKS: dict[str, type[_Fields]] = {
    "reconstruct": Reconstruct,
    "encode": Encode,
    "decode": Decode,
    "generate": Generate,
    "interpolate": Interpolate,
}


class Reply(BaseModel):
    """What comes back; each task fills some of the fields, and the others are left out."""

    audio: str | None = Field(None, description="WAV (16 bits, at the model's rate) in base64.")
    sounds: list[str] | None = Field(None, description="Several of them.")
    spectrogram: Matrix | None = Field(None, description="In dB, where one was given.")
    latent: Matrix | None = Field(None, description="A vector per segment; of `generate`, per sound.")
    start_s: Vector | None = Field(None, description="Of each segment.")
    channel: list[int] | None = Field(None, description="Of each segment.")
    min_db: Vector | None = Field(None, description="Of each vector's spectrogram.")
    max_db: Vector | None = Field(None, description="Of each vector's spectrogram.")
    duration_s: float | None = Field(None, description="Of the sound.")
    mse: float | None = Field(None, description="Mean squared error of the normalised spectrograms.")
    log_spectral_distance_db: float | None = Field(None, description="From the original.")

    @model_serializer(mode="wrap")
    def _leave_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if value is not None}


def _make_request() -> type[BaseModel]:
    """Return a class with the fields of all tasks, in which nothing is checked.

    MLflow reads its signature off it, and would check it too, and answer what is wrong with all of the request.
    """
    fields: dict[str, Any] = {"task": (Annotated[str, SkipValidation], "")}
    for model in TASKS.values():
        for name, field in model.model_fields.items():
            if name != "task":
                annotation: Any = field.annotation
                unchecked = Annotated[annotation | None, SkipValidation]
                fields[name] = (unchecked, Field(None, description=field.description))
    return create_model("Request", __config__=ConfigDict(extra="allow"), __doc__="One input.", **fields)


Request = _make_request()


def parse(place: str, given: BaseModel) -> _Fields:
    """Return what is asked for, checked.

    Parameters
    ----------
    place : str
        Where it stands, as in `inputs[0]`.
    given : Request

    Raises
    ------
    RequestError
        The task is unknown, or a field is missing, unknown, of the wrong type, or out of range.
    """
    content = {name: value for name, value in given if name in given.model_fields_set}
    task = content.get("task")
    if not isinstance(task, str) or task not in TASKS:
        raise RequestError(f"{place}.task", f"is {_shortened(task)}, and must be one of {', '.join(TASKS)}")
    try:
        return TASKS[task].model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{_shortened(part, str)}" for part in first["loc"])
    reason = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if first["type"] == "extra_forbidden":
        fields = ", ".join(TASKS[task].model_fields)
        raise RequestError(place + where, f"is no field of the task {task!r}, which has {fields}")
    shown = "" if first["type"] in ("missing", "value_error") else f", and is {_shortened(first['input'])}"
    raise RequestError(place + where, f"{reason[0].lower()}{reason[1:]}{shown}")


def _want_one(fields: BaseModel, *names: str) -> None:
    """Refuse none or more than one of several fields."""
    given = [name for name in names if getattr(fields, name) is not None]
    if len(given) != 1:
        raise ValueError(f"{' or '.join(names)} must be given, and only one of them")


def _shortened(value: Any, show: Any = repr) -> str:
    """Return a value for a message, which nobody wants to read megabytes of."""
    shown = show(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
