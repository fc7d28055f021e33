"""Configuration of LoRA adapters, https://arxiv.org/abs/2106.09685."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

# Kinds of layers that adapters are configured for, one by one.
TargetSet = Literal["decoder", "cross_attention", "encoder", "projector"]
TARGET_SETS: tuple[TargetSet, ...] = ("decoder", "cross_attention", "encoder", "projector")


class LoraTarget(BaseModel):
    """The adapters of one target set.

    rank: of the matrix that is added to a layer's weight.
    alpha: that matrix is multiplied by alpha / rank.
    dropout: the share of a layer's inputs that its adapter does not see in a step of training.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: PositiveInt
    alpha: PositiveFloat
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @property
    def scale(self) -> float:
        """What the product of an adapter's two matrices is multiplied by."""
        return self.alpha / self.rank


class LoraConfig(BaseModel):
    """Which linear layers learn through adapters; the gates of cross-attention learn with them.

    decoder: self-attention and MLP of the decoder's self-attention blocks.
    cross_attention: attention and MLP of its cross-attention blocks.
    encoder: attention and MLP of the vision encoder's layers.
    projector: its linear layers.
    base_weights: how the frozen weights are held. In `bfloat16` matrices are, in `nf4` those of the
        decoder's layers are held in 4 bits (https://arxiv.org/abs/2305.14314) and all others in
        bfloat16.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decoder: LoraTarget | None = None
    cross_attention: LoraTarget | None = None
    encoder: LoraTarget | None = None
    projector: LoraTarget | None = None
    base_weights: Literal["float32", "bfloat16", "nf4"] = "float32"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.targets:
            raise ValueError(f"no layer gets an adapter; set one of {', '.join(TARGET_SETS)}")
        return self

    @property
    def targets(self) -> dict[TargetSet, LoraTarget]:
        """The sets that have adapters."""
        found: dict[TargetSet, LoraTarget | None] = {
            "decoder": self.decoder,
            "cross_attention": self.cross_attention,
            "encoder": self.encoder,
            "projector": self.projector,
        }
        return {name: target for name, target in found.items() if target is not None}
