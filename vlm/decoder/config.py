"""Configuration of the decoder."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

# Every fifth layer of the full stack cross-attends, counted from the fourth: 3, 8, 13, ...
CROSS_ATTENTION_PERIOD = 5
FIRST_CROSS_ATTENTION_LAYER = 3
# The fields of RopeScaling that each kind reads beside `factor`.
ROPE_FIELDS = {
    "linear": (),
    "dynamic": ("original_max_positions",),
    "llama3": ("original_max_positions", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "original_max_positions",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "truncate",
    ),
}


class RopeScaling(BaseModel):
    """How rotary frequencies are stretched beyond the trained context, by `kind`.

    linear: positions are divided by `factor`.
    dynamic: the base grows with a row's length beyond `original_max_positions` (NTK-aware,
        transformers' rule).
    llama3: long wavelengths are divided by `factor`, short ones kept, those between blended.
    yarn: https://arxiv.org/abs/2309.00071. `attention_factor` scales cosines and sines; None
        derives it from `factor`, or from `mscale` and `mscale_all_dim` where both are given.
        `truncate` rounds the ends of the ramp to whole channels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["linear", "dynamic", "llama3", "yarn"]
    factor: PositiveFloat
    original_max_positions: PositiveInt | None = None
    low_freq_factor: PositiveFloat = 1.0
    high_freq_factor: PositiveFloat = 4.0
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0
    attention_factor: PositiveFloat | None = None
    mscale: PositiveFloat | None = None
    mscale_all_dim: PositiveFloat | None = None
    truncate: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        read = {"kind", "factor", *ROPE_FIELDS[self.kind]}
        for name, field in type(self).model_fields.items():
            if name not in read and getattr(self, name) != field.default:
                raise ValueError(f"{name} is set, and the kind {self.kind!r} does not read it")
        if "original_max_positions" in read and self.original_max_positions is None:
            raise ValueError(f"the kind {self.kind!r} needs original_max_positions")
        return self


class DecoderConfig(BaseModel):
    """Shape of the decoder.

    vocab_size: rows of the output layer. A pretrained LLM may have more than its tokenizer has
        ids; the rows without an id are never written.
    num_extra_embeddings: input-only rows behind the vocabulary: Llama 3.2 keeps `<|image|>` there,
        so that it can be read and never be written.
    num_layers: self- and cross-attention layers together.
    head_size: width of one attention head; without it, `hidden_size / num_heads`.
    attention_bias: which projections of self-attention add a bias: queries, keys and values
        (Qwen2), or the output too (`attention_bias` of Llama and Qwen3).
    qk_norm: self-attention RMS-normalises queries and keys, head by head, before it rotates them
        (Qwen3). Cross-attention always does and never has biases.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: PositiveInt
    num_extra_embeddings: int = Field(default=0, ge=0)
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_size: PositiveInt = Field(
        default_factory=lambda shape: shape["hidden_size"] // shape["num_heads"]
    )
    max_positions: PositiveInt
    norm_eps: PositiveFloat = 1e-5
    rope_theta: PositiveFloat = 500_000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False
    attention_bias: Literal["qkv", "qkvo"] | None = None
    qk_norm: bool = False

    @property
    def num_embeddings(self) -> int:
        """Rows of the input embedding: the vocabulary and what stands behind it."""
        return self.vocab_size + self.num_extra_embeddings

    @property
    def cross_attention_layers(self) -> tuple[int, ...]:
        """Indices of the cross-attention layers in the full stack."""
        return tuple(range(FIRST_CROSS_ATTENTION_LAYER, self.num_layers, CROSS_ATTENTION_PERIOD))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "head_size" not in self.model_fields_set and self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} / num_heads {self.num_heads} "
                "must be an even whole number, or head_size given"
            )
        if self.head_size % 2:
            raise ValueError(f"head_size {self.head_size} must be even: it is rotated in pairs")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if not self.cross_attention_layers:
            raise ValueError(
                f"num_layers {self.num_layers} leaves no cross-attention layer; "
                f"the first is layer {FIRST_CROSS_ATTENTION_LAYER}"
            )
        return self
