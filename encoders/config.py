"""Configuration of the tiled local/global vision encoder and of the contrastive text tower."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

# Per-channel statistics of CLIP's training pictures, range 0..1:
# https://github.com/openai/CLIP/blob/main/clip/clip.py
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class TowerConfig(BaseModel):
    """A vision transformer of timm in place of the local layers.

    name: what timm calls it, such as `vit_small_patch14_reg4_dinov2`.
    arguments: of `timm.create_model`, beside those that follow from the encoder's configuration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    arguments: dict[str, Any] = {}


class VisionConfig(BaseModel):
    """Shape of the vision encoder; the defaults of optional fields are Llama 3.2 Vision's.

    intermediate_layers: the local layers whose *entering* states join the output, as in Meta's
        Llama 3.2: index 3 is the output of the third layer, `num_local_layers` that of the last.
    local_attention: whether local layers see the tile or the whole image.
    padding_tiles: `drop` computes the tiles of the picture only. `attend` is the arithmetic of
        Llama 3.2: images are filled up to `max_num_tiles` with empty tiles, which the picture's
        tokens see. It needs `local_attention: image`.
    norm_eps: of the norms in layers; `outer_norm_eps` of those before and after the local layers.

    Where other families differ (CLIP, SigLIP, plain ViT):

    tower: a model of timm that stands in for the local layers; what follows is then of the global
        layers.
    num_prefix_tokens: tokens of a tile before its patches: 1 is the class token.
    pre_norm: whether embeddings are normalised before the first layer.
    patch_bias, attention_bias: whether the patch embedding, and the projections of attention, have
        biases.
    activation: `gelu_tanh` is GELU's approximation by tanh, `quick_gelu` is x sigmoid(1.702 x).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tile_size_px: PositiveInt
    patch_size_px: PositiveInt
    max_num_tiles: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_heads: PositiveInt
    num_local_layers: PositiveInt
    num_global_layers: int = Field(ge=0)
    intermediate_layers: tuple[int, ...]
    local_attention: Literal["tile", "image"] = "tile"
    padding_tiles: Literal["drop", "attend"] = "drop"
    norm_eps: float = Field(default=1e-5, gt=0)
    outer_norm_eps: float = Field(default=1e-5, gt=0)
    tower: TowerConfig | None = None
    num_prefix_tokens: int = Field(default=1, ge=0)
    pre_norm: bool = True
    patch_bias: bool = False
    attention_bias: bool = False
    activation: Literal["gelu", "gelu_tanh", "quick_gelu"] = "gelu"
    image_mean: tuple[float, float, float] = CLIP_MEAN
    image_std: tuple[float, float, float] = CLIP_STD

    @property
    def num_patches(self) -> int:
        """Patches of one tile."""
        return (self.tile_size_px // self.patch_size_px) ** 2

    @property
    def num_tokens(self) -> int:
        """Tokens of one tile, `N`."""
        return self.num_prefix_tokens + self.num_patches

    @property
    def output_size(self) -> int:
        """Width of a token's features: the final state and every intermediate state."""
        return self.hidden_size * (1 + len(self.intermediate_layers))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tile_size_px % self.patch_size_px:
            raise ValueError(
                f"tile_size_px {self.tile_size_px} is not a multiple of "
                f"patch_size_px {self.patch_size_px}"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        outside = [i for i in self.intermediate_layers if not 0 <= i <= self.num_local_layers]
        if outside:
            raise ValueError(
                f"intermediate_layers {outside} are outside 0..{self.num_local_layers}, "
                f"the states before and after the {self.num_local_layers} local layers"
            )
        if self.tower is None and self.num_prefix_tokens > 1:
            raise ValueError(
                f"num_prefix_tokens is {self.num_prefix_tokens}; without a tower there is one at "
                "most, the class token"
            )
        if self.tower is not None and (self.local_attention, self.padding_tiles) != (
            "tile",
            "drop",
        ):
            raise ValueError("a tower needs local_attention 'tile' and padding_tiles 'drop'")
        if self.tower is not None and 0 in self.intermediate_layers:
            raise ValueError(
                "a tower does not give the state that enters its first layer; take 0 out of "
                f"intermediate_layers {list(self.intermediate_layers)}"
            )
        if self.padding_tiles == "attend" and self.local_attention == "tile":
            raise ValueError(
                "padding_tiles 'attend' needs local_attention 'image': "
                "a tile that attends to itself alone sees no padding tile"
            )
        return self


class TextTowerConfig(BaseModel):
    """Shape of the contrastive stage's text tower (open_clip's text transformer)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: PositiveInt
    max_tokens: PositiveInt
    hidden_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    embedding_size: PositiveInt
