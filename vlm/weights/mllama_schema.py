"""What stands in the `config.json` of transformers' Mllama: fields, defaults, and what is refused.

A field that nothing here knows is an error, unless its value changes nothing.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from encoders.tiling import supported_canvases
from vlm.decoder.config import CROSS_ATTENTION_PERIOD, FIRST_CROSS_ATTENTION_LAYER, ROPE_FIELDS
from vlm.errors import UserError

# Input rows that Mllama's embedding has behind its vocabulary.
NUM_EXTRA_EMBEDDINGS = 8
# RopeScaling's names in transformers' words, where they differ.
ROPE_WORDS = {
    "kind": "rope_type",
    "original_max_positions": "original_max_position_embeddings",
}
# What every transformers configuration may carry and no Mllama's arithmetic depends on: ids that
# are the tokenizer's business, names, versions, storage types, labels of classifiers, what a call
# returns, generation's settings. Mllama has an output layer of its own whatever
# `tie_word_embeddings` says; a folder that lacks it is found by its missing tensor.
NEUTRAL_KEYS = frozenset(
    """
    tie_word_embeddings bos_token_id eos_token_id pad_token_id
    _attn_implementation_autoset _name_or_path _commit_hash architectures attn_implementation
    dtype torch_dtype finetuning_task id2label label2id num_labels problem_type
    task_specific_params tokenizer_class transformers_version prefix use_bfloat16 torchscript
    tf_legacy_loss output_attentions output_hidden_states return_dict return_dict_in_generate
    output_scores chunk_size_feed_forward is_encoder_decoder initializer_range use_cache
    max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups
    diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences
    forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    decoder_start_token_id sep_token_id unsloth_version unsloth_fixed
    """.split()
)
# Settings that would change what is computed, and the value at which they do not.
OFF: dict[str, Any] = {
    "add_cross_attention": False,
    "is_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
}


class Section(BaseModel):
    """A section of `config.json`; what is left out or null has transformers' default."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, section: Any) -> Any:
        if not isinstance(section, Mapping):
            return section
        return {key: value for key, value in section.items() if value is not None}


class VisionSection(Section):
    """`vision_config`."""

    model_type: Literal["mllama_vision_model"] = "mllama_vision_model"
    hidden_size: int = 1280
    hidden_act: Literal["gelu"] = "gelu"
    num_hidden_layers: int = 32
    num_global_layers: int = 8
    attention_heads: int = Field(
        default=16, validation_alias=AliasChoices("attention_heads", "num_attention_heads")
    )
    num_channels: Literal[3] = 3
    intermediate_size: int = 5120
    vision_output_dim: int = 7680
    image_size: int = 448
    patch_size: int = 14
    norm_eps: float = 1e-5
    max_num_tiles: int = 4
    intermediate_layers_indices: tuple[int, ...] = (3, 7, 15, 23, 30)
    supported_aspect_ratios: tuple[tuple[int, int], ...] = supported_canvases(4)
    # Written by some versions; follows from the aspect ratios.
    max_aspect_ratio_id: int | None = None


class TextSection(Section):
    """`text_config`."""

    model_type: Literal["mllama_text_model"] = "mllama_text_model"
    vocab_size: int = 128256
    hidden_size: int = 4096
    hidden_act: Literal["silu"] = "silu"
    num_hidden_layers: int = 40
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    intermediate_size: int = 14336
    rope_theta: float = 500_000.0
    rope_scaling: Mapping[str, Any] | None = None
    rope_parameters: Mapping[str, Any] | None = None
    partial_rotary_factor: Literal[1] | None = None
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131_072
    original_max_position_embeddings: int | None = None
    cross_attention_layers: tuple[int, ...] = (3, 8, 13, 18, 23, 28, 33, 38)
    dropout: float = Field(default=0.0, ge=0, le=0)


class MllamaFile(Section):
    """The whole file."""

    model_type: Literal["mllama"]
    image_token_index: int = Field(
        default=128256, validation_alias=AliasChoices("image_token_index", "image_token_id")
    )
    vision_config: VisionSection = VisionSection()
    text_config: TextSection = TextSection()
    transformers_version: str | None = None


def read_mllama(config: Mapping[str, Any]) -> MllamaFile:
    """Check the content of a Mllama `config.json` and return it with its defaults filled in.

    Raises:
        UserError: it describes another model, or one that we cannot compute exactly; every field
            that says so is named.
    """
    try:
        whole = MllamaFile.model_validate(dict(config))
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}, not {e['input']!r}"
            for e in error.errors(include_url=False)
        ]
        raise UserError(f"cannot read this Mllama configuration: {'; '.join(problems)}") from None
    problems = [
        *_unknown("", whole),
        *_unknown("vision_config.", whole.vision_config),
        *_unknown("text_config.", whole.text_config),
        *_contradictions(whole),
        *_rope_problems(whole.text_config),
    ]
    if problems:
        raise UserError(f"cannot compute this Mllama configuration: {'; '.join(problems)}")
    return whole


def rope_words(kind: str) -> dict[str, str]:
    """Our fields that a kind of scaling reads, and transformers' words for them."""
    return {name: ROPE_WORDS.get(name, name) for name in ("kind", "factor", *ROPE_FIELDS[kind])}


def rope_parameters(text: TextSection) -> dict[str, Any]:
    """transformers' rotary parameters in one mapping, whichever version wrote them."""
    rope = dict(text.rope_scaling or text.rope_parameters or {})
    old_type = rope.pop("type", None)
    rope.setdefault("rope_type", old_type or "default")
    rope.setdefault("rope_theta", text.rope_theta)
    if rope["rope_type"] == "dynamic":
        rope["original_max_position_embeddings"] = text.max_position_embeddings
    elif text.original_max_position_embeddings is not None:
        rope["original_max_position_embeddings"] = text.original_max_position_embeddings
    else:
        rope.setdefault("original_max_position_embeddings", text.max_position_embeddings)
    if rope["rope_type"] == "yarn" and rope.get("factor") is None:
        original = rope["original_max_position_embeddings"]
        rope["factor"] = text.max_position_embeddings / original
    return rope


def _unknown(prefix: str, section: Section) -> Iterator[str]:
    """Name the settings that nothing here reads and that may change what is computed."""
    for key, value in (section.model_extra or {}).items():
        if key not in NEUTRAL_KEYS and not (key in OFF and value == OFF[key]):
            yield f"{prefix}{key} is {value!r}, which is not supported"


def _contradictions(whole: MllamaFile) -> Iterator[str]:
    """Name the fields whose values our model cannot take."""
    vision, text = whole.vision_config, whole.text_config
    canvases = supported_canvases(max(vision.max_num_tiles, 1))
    if vision.supported_aspect_ratios != canvases:
        yield (
            f"vision_config.supported_aspect_ratios is {vision.supported_aspect_ratios!r}; "
            f"for {vision.max_num_tiles} tiles they must be {canvases!r}"
        )
    if vision.max_aspect_ratio_id not in (None, len(canvases)):
        yield (
            f"vision_config.max_aspect_ratio_id is {vision.max_aspect_ratio_id}, "
            f"needed: {len(canvases)}"
        )
    width = vision.hidden_size * (1 + len(vision.intermediate_layers_indices))
    if vision.vision_output_dim != width:
        yield (
            f"vision_config.vision_output_dim is {vision.vision_output_dim}; the final state and "
            f"the intermediate ones make {width}"
        )
    layers = text.cross_attention_layers
    period = tuple(
        range(FIRST_CROSS_ATTENTION_LAYER, text.num_hidden_layers, CROSS_ATTENTION_PERIOD)
    )
    if layers != period:
        yield f"text_config.cross_attention_layers is {list(layers)}, needed: {list(period)}"
    num_rows = text.vocab_size + NUM_EXTRA_EMBEDDINGS
    if not 0 <= whole.image_token_index < num_rows:
        yield f"image_token_index is {whole.image_token_index}, outside the {num_rows} embeddings"


def _rope_problems(text: TextSection) -> Iterator[str]:
    rope = rope_parameters(text)
    kind = rope["rope_type"]
    if kind != "default" and kind not in ROPE_FIELDS:
        kinds = ", ".join(["default", *ROPE_FIELDS])
        yield f"text_config's rope_type is {kind!r}; supported are {kinds}"
        return
    known = {"rope_theta", "rope_type", "original_max_position_embeddings"}
    if kind != "default":
        known |= set(rope_words(kind).values())
        if rope.get("factor") is None:
            yield f"text_config's rotary parameters of type {kind!r} have no factor"
    for key, value in rope.items():
        if key == "partial_rotary_factor" and value in (None, 1):
            continue
        if key not in known and value is not None:
            yield f"text_config's rotary parameter {key} is {value!r}, which {kind!r} has not"
