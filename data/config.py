"""Configuration of the training data."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    model_validator,
)


def _location(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


Location = Annotated[str, BeforeValidator(_location), Field(min_length=1)]


class SourceConfig(BaseModel):
    """A folder of shards, by path or URL.

    weight: this source's part of a mixture, relative to the others' weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Location
    weight: PositiveFloat | None = None


class DataConfig(BaseModel):
    """Which shards are read, in what order, and how they become batches.

    Exactly one of `batch_samples` and `batch_tokens` is set: samples of a batch, or text tokens of
    a batch with padding counted.

    train: folders of shards, by path or URL. Without weights they are joined, and every sample
        comes once an epoch. With weights, on all of them, each source has epochs of its own, and
        gives its part of all samples or tokens, at any time.
    mix_by: what the weights are parts of: samples, or text tokens (of whole chats, the template's
        among them), which are counted once for each source.
    batch_tiles: at most so many tiles of pictures share a batch.
    max_tokens: samples with a longer row are rejected and counted.
    packing: rows of a batch are put one after the other into sequences of at most `max_tokens`,
        where each sees itself only. For next-token stages.
    split_turns: each question/answer turn of a sample becomes a row of its own, which sees the
        sample's pictures and not the other turns; the pictures are encoded once for all of them.
        For independent questions about a picture, not for conversations.
    max_turns: with `split_turns`, at most this many turns of a sample, drawn anew each epoch.
    draft: large JPEGs are decoded at a reduced scale, and pictures resized by a faster kernel:
        nearly the same pixels (docs/design.md). Off, a model is trained on exactly those that it
        will be asked about.
    pool_batches: batches made from one pool of samples; within a pool, samples of like length
        share a batch.
    shuffle_shards: shards whose samples are shuffled together.
    max_bad_fraction: the run stops when more of the samples read than this are rejected.
    log_samples: write the keys of every step's samples to `samples.jsonl` in the run folder.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: tuple[Location | SourceConfig, ...] = Field(min_length=1)
    validation: tuple[Location, ...] = ()
    mix_by: Literal["samples", "tokens"] = "samples"
    batch_samples: PositiveInt | None = None
    batch_tokens: PositiveInt | None = None
    batch_tiles: PositiveInt | None = None
    max_tokens: PositiveInt
    packing: bool = False
    split_turns: bool = False
    max_turns: PositiveInt | None = None
    draft: bool = True
    pool_batches: PositiveInt = 16
    shuffle_shards: PositiveInt = 8
    num_workers: int = Field(default=0, ge=0)
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)
    log_samples: bool = False

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """What `train` lists; a path alone has no weight."""
        return tuple(
            source if isinstance(source, SourceConfig) else SourceConfig(path=source)
            for source in self.train
        )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.batch_samples is None) == (self.batch_tokens is None):
            raise ValueError("set exactly one of batch_samples and batch_tokens")
        if self.max_turns is not None and not self.split_turns:
            raise ValueError("max_turns draws from split turns: set split_turns as well")
        weighted = [source.weight is not None for source in self.sources]
        if any(weighted) and not all(weighted):
            without = self.sources[weighted.index(False)].path
            raise ValueError(f"{without} has no weight: give all sources of train one, or none")
        if self.mix_by == "tokens" and not any(weighted):
            raise ValueError("mix_by: tokens needs a weight for each source of train")
        return self
