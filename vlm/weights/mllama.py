"""The configuration of transformers' Mllama (Llama 3.2 Vision), both ways.

Pure functions of what stands in a checkpoint's `config.json`; nothing is read or written here.
Names of tensors are in `mllama_names`.

The indices of intermediate states deserve a word. Meta's code and transformers before 4.55 take
the state that *enters* the layer of that index; transformers 4.55 and later take the one that
*leaves* it (huggingface/transformers pull requests 39643 and 40083). A folder's
`transformers_version` says which of them wrote its indices, and we follow it: Meta's own folders
are read as Meta computes them, and any folder as the transformers that wrote it does.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator

from encoders.config import CLIP_MEAN, CLIP_STD, VisionConfig
from encoders.tiling import supported_canvases
from projector.config import ProjectorConfig
from vlm.config import VLMConfig
from vlm.decoder.config import (
    CROSS_ATTENTION_PERIOD,
    FIRST_CROSS_ATTENTION_LAYER,
    ROPE_FIELDS,
    DecoderConfig,
    RopeScaling,
)
from vlm.errors import UserError
from vlm.weights.folder import differences

# Input rows that Mllama's embedding has behind its vocabulary.
NUM_EXTRA_EMBEDDINGS = 8
# The first transformers whose intermediate states leave the layers that name them.
LEAVING_SINCE = (4, 55)
# What we write says so by this version, the oldest that we support.
WRITTEN_VERSION = "5.17.0"
# RopeScaling's names in transformers' words.
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
OFF = {
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "is_decoder": False,
    "pruned_heads": {},
    "tie_encoder_decoder": False,
    "quantization_config": None,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "head_dim": None,
}


class _Section(BaseModel):
    """A section of `config.json`; what is left out or null has transformers' default."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, section: Any) -> Any:
        if not isinstance(section, Mapping):
            return section
        return {key: value for key, value in section.items() if value is not None}


class _Vision(_Section):
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


class _Text(_Section):
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


class _Whole(_Section):
    model_type: Literal["mllama"]
    image_token_index: int = Field(
        default=128256, validation_alias=AliasChoices("image_token_index", "image_token_id")
    )
    vision_config: _Vision = _Vision()
    text_config: _Text = _Text()
    transformers_version: str | None = None


def config_from_mllama(
    config: Mapping[str, Any],
    image_mean: tuple[float, float, float] = CLIP_MEAN,
    image_std: tuple[float, float, float] = CLIP_STD,
) -> VLMConfig:
    """Return our configuration of the model that a Mllama `config.json` describes.

    Args:
        config: the file's content, as transformers 4.45 to 5 write it.
        image_mean, image_std: of the image processor, which keeps them in another file.
    Raises:
        UserError: the file describes another model, or one that we cannot compute exactly;
            every field that says so is named.
    """
    try:
        whole = _Whole.model_validate(dict(config))
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}, not {e['input']!r}"
            for e in error.errors(include_url=False)
        ]
        raise UserError(f"cannot read this Mllama configuration: {'; '.join(problems)}") from None
    vision, text = whole.vision_config, whole.text_config
    problems = [
        *_unread("", whole),
        *_unread("vision_config.", vision),
        *_unread("text_config.", text),
        *_contradictions(whole),
    ]
    if problems:
        raise UserError(f"cannot compute this Mllama configuration: {'; '.join(problems)}")
    try:
        return VLMConfig(
            vision=_vision_from(vision, whole.transformers_version, image_mean, image_std),
            projector=ProjectorConfig(kind="linear"),
            decoder=_decoder_from(text),
            image_visibility="latest",
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"cannot compute this Mllama configuration: {first['msg']}") from None


def config_to_mllama(
    config: VLMConfig,
    *,
    image_token_id: int,
    bos_id: int,
    eos_ids: Sequence[int],
    pad_id: int,
    dtype: str,
) -> dict[str, Any]:
    """Return the `config.json` of a model for transformers' `MllamaForConditionalGeneration`.

    What Mllama cannot express is found by reading the result back: every field that comes back
    otherwise is a difference.

    Args:
        image_token_id: of `<|image|>`; one of the rows behind the vocabulary.
        dtype: of the weights, in transformers' words: "float32", "bfloat16".
    Raises:
        UserError: naming every field that Mllama cannot express, with our value and Mllama's.
    """
    written = {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "transformers_version": WRITTEN_VERSION,
        "dtype": dtype,
        "image_token_index": image_token_id,
        "vision_config": _vision_to(config.vision),
        "text_config": {
            **_decoder_to(config.decoder),
            "bos_token_id": bos_id,
            "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else list(eos_ids),
            "pad_token_id": pad_id,
        },
    }
    back = config_from_mllama(written, config.vision.image_mean, config.vision.image_std)
    lost = [
        f"{path} is {ours!r} and would become {theirs!r}"
        for path, ours, theirs in differences(config.model_dump(), back.model_dump())
    ]
    if not any(config.vision.intermediate_layers):
        lost.append("vision.intermediate_layers must name a layer after the first")
    if lost:
        raise UserError(f"transformers' Mllama cannot express this model: {'; '.join(lost)}")
    return written


def _vision_from(
    vision: _Vision,
    version: str | None,
    image_mean: tuple[float, float, float],
    image_std: tuple[float, float, float],
) -> VisionConfig:
    shift = 1 if _states_leave(version) else 0
    return VisionConfig(
        tile_size_px=vision.image_size,
        patch_size_px=vision.patch_size,
        max_num_tiles=vision.max_num_tiles,
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        num_heads=vision.attention_heads,
        num_local_layers=vision.num_hidden_layers,
        num_global_layers=vision.num_global_layers,
        intermediate_layers=tuple(i + shift for i in vision.intermediate_layers_indices),
        local_attention="image",
        padding_tiles="attend",
        norm_eps=vision.norm_eps,
        image_mean=image_mean,
        image_std=image_std,
    )


def _vision_to(vision: VisionConfig) -> dict[str, Any]:
    # Index 0, the state before the first layer, has no name in Mllama.
    indices = [index - 1 for index in vision.intermediate_layers if index > 0]
    return {
        "model_type": "mllama_vision_model",
        "hidden_size": vision.hidden_size,
        "hidden_act": "gelu",
        "num_hidden_layers": vision.num_local_layers,
        "num_global_layers": vision.num_global_layers,
        "attention_heads": vision.num_heads,
        "num_channels": 3,
        "intermediate_size": vision.intermediate_size,
        "vision_output_dim": vision.hidden_size * (1 + len(indices)),
        "image_size": vision.tile_size_px,
        "patch_size": vision.patch_size_px,
        "norm_eps": vision.norm_eps,
        "max_num_tiles": vision.max_num_tiles,
        "intermediate_layers_indices": indices,
        "supported_aspect_ratios": [
            list(canvas) for canvas in supported_canvases(vision.max_num_tiles)
        ],
    }


def _decoder_from(text: _Text) -> DecoderConfig:
    rope = _rope_parameters(text)
    scaling = None
    if rope["rope_type"] != "default":
        given = {ours: rope.get(theirs) for ours, theirs in _rope_words(rope["rope_type"]).items()}
        scaling = RopeScaling.model_validate(
            {name: value for name, value in given.items() if value is not None}
        )
    max_positions = text.max_position_embeddings
    if rope["rope_type"] == "dynamic":
        # transformers gives the trained length, which `factor` stretches, and sets no limit.
        max_positions = round(max_positions * rope["factor"])
    return DecoderConfig(
        vocab_size=text.vocab_size,
        num_extra_embeddings=NUM_EXTRA_EMBEDDINGS,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_layers=text.num_hidden_layers,
        num_heads=text.num_attention_heads,
        num_kv_heads=text.num_key_value_heads,
        max_positions=max_positions,
        norm_eps=text.rms_norm_eps,
        rope_theta=rope["rope_theta"],
        rope_scaling=scaling,
    )


def _decoder_to(decoder: DecoderConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_theta": decoder.rope_theta, "rope_type": "default"}
    max_positions = decoder.max_positions
    scaling = decoder.rope_scaling
    if scaling is not None:
        words = _rope_words(scaling.kind)
        given = {theirs: getattr(scaling, ours) for ours, theirs in words.items()}
        rope |= {name: value for name, value in given.items() if value is not None}
        if scaling.kind == "dynamic":
            max_positions = rope.pop("original_max_position_embeddings")
    return {
        "model_type": "mllama_text_model",
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "hidden_act": "silu",
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "intermediate_size": decoder.intermediate_size,
        "rope_parameters": rope,
        "rms_norm_eps": decoder.norm_eps,
        "max_position_embeddings": max_positions,
        "tie_word_embeddings": False,
        "cross_attention_layers": list(decoder.cross_attention_layers),
        "dropout": 0.0,
    }


def _rope_words(kind: str) -> dict[str, str]:
    """Our fields that a kind of scaling reads, and transformers' words for them."""
    return {name: ROPE_WORDS.get(name, name) for name in ("kind", "factor", *ROPE_FIELDS[kind])}


def _rope_parameters(text: _Text) -> dict[str, Any]:
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


def _states_leave(version: str | None) -> bool:
    """Whether the transformers of this version takes states that leave their layers."""
    number = re.match(r"(\d+)\.(\d+)", version or WRITTEN_VERSION)
    return number is None or (int(number[1]), int(number[2])) >= LEAVING_SINCE


def _unread(prefix: str, section: _Section) -> Iterator[str]:
    """Name the settings that nothing here reads and that may change what is computed."""
    for key, value in (section.model_extra or {}).items():
        harmless = value is None or key in NEUTRAL_KEYS or (key in OFF and value == OFF[key])
        if not harmless:
            yield f"{prefix}{key} is {value!r}, which is not supported"


def _contradictions(whole: _Whole) -> Iterator[str]:
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
    yield from _rope_problems(text)


def _rope_problems(text: _Text) -> Iterator[str]:
    rope = _rope_parameters(text)
    kind = rope["rope_type"]
    if kind != "default" and kind not in ROPE_FIELDS:
        kinds = ", ".join(["default", *ROPE_FIELDS])
        yield f"text_config's rope_type is {kind!r}; supported are {kinds}"
        return
    known = {"rope_theta", "rope_type", "original_max_position_embeddings"}
    if kind != "default":
        known |= set(_rope_words(kind).values())
        if rope.get("factor") is None:
            yield f"text_config's rotary parameters of type {kind!r} have no factor"
    for key, value in rope.items():
        if key == "partial_rotary_factor" and value in (None, 1):
            continue
        if key not in known and value is not None:
            yield f"text_config's rotary parameter {key} is {value!r}, which {kind!r} has not"
