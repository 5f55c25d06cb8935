"""The sections of `params.yaml` that say how a model is built, trained and judged."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, Strict, model_validator

from pipeline.params import Count, PipelineParams, Positive, Section

Strides = Count | Annotated[tuple[Count, Count], Strict(False)]
Counts = Annotated[tuple[Count, ...], Strict(False), Field(min_length=1)]
StridesList = Annotated[tuple[Strides, ...], Strict(False), Field(min_length=1)]
Shape = Annotated[tuple[Count, Count], Strict(False)]


class AutoencoderSection(Section):
    """The network: one entry per convolutional layer of the encoder; the decoder mirrors them."""

    conv_filters: Counts
    conv_kernels: StridesList
    conv_strides: StridesList
    latent_space_dim: Count
    variational: bool
    beta: Positive

    @model_validator(mode="after")
    def _check(self) -> Self:
        lengths = len(self.conv_filters), len(self.conv_kernels), len(self.conv_strides)
        if len(set(lengths)) > 1:
            raise ValueError(
                f"conv_filters, conv_kernels, conv_strides have {lengths[0]}, {lengths[1]} and {lengths[2]} entries, "
                "and must have one per layer"
            )
        return self


class TrainSection(Section):
    """The optimisation."""

    epochs: Count
    global_batch_size: Count
    learning_rate: Positive
    initialisation: Literal["pca", "random"]
    schedule: Literal["constant", "cosine"]
    precision: Literal["float32", "bfloat16"]
    warmup_epochs: Annotated[float, Field(ge=0.0)]
    patience: Count
    shift_frames: Annotated[int, Field(ge=0)]
    target_shape: Shape | None
    seed: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} must be fewer than epochs={self.epochs}")
        return self


class EvaluateSection(Section):
    """What is shown of the held-out sounds."""

    examples: Count


class GenerateSection(Section):
    """New sounds from the latent space."""

    count: Count
    interpolations: Annotated[int, Field(ge=0)]
    interpolation_steps: Annotated[int, Field(ge=2)]
    arithmetic: Annotated[int, Field(ge=0)]
    map_clips: Count
    seed: Annotated[int, Field(ge=0)]


class Params(PipelineParams):
    """All of `params.yaml`; here unknown sections are refused too."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    autoencoder: AutoencoderSection
    train: TrainSection
    evaluate: EvaluateSection
    generate: GenerateSection

    @property
    def worker_counts(self) -> list[int]:
        """Numbers of workers that training may have, rising: each of them has an equal slice of every batch."""
        least, most = self.resources.least_and_most_train_workers
        return [number for number in range(least, most + 1) if self.train.global_batch_size % number == 0]

    @model_validator(mode="after")
    def _check(self) -> Self:
        workers, batch = self.resources.train_workers, self.train.global_batch_size
        if not self.worker_counts:
            how = "must divide" if isinstance(workers, int) else "must hold a number that divides"
            raise ValueError(
                f"resources.train_workers={workers if isinstance(workers, int) else list(workers)} {how} "
                f"train.global_batch_size={batch}, so that every worker has an equal slice of each batch"
            )
        return self
