"""A Llama-shaped LLM's folder in transformers' format: the shape of the decoder grafted from it.

transformers' own class of the model's type fills in what `config.json` leaves out. Every field is
then read, or checked to be what this decoder does, or known to change no number; any other stops.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from vlm.chat.files import read_json_object
from vlm.chat.template import read_chat_format
from vlm.chat.tokenizer import Tokenizer
from vlm.decoder.config import CROSS_ATTENTION_PERIOD, ROPE_FIELDS, DecoderConfig
from vlm.errors import UserError
from vlm.weights.mllama_schema import NEUTRAL_KEYS, rope_words

CONFIG_FILE = "config.json"
FAMILIES: Mapping[str, type[PreTrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
# What must have one of these values, since the decoder does just that.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "mlp_bias": (False,),
    "attention_dropout": (0,),
    "auto_map": (None,),
    "quantization_config": (None,),
}
READ = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "attention_bias",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "partial_rotary_factor",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "eos_token_id",
}
# Names that files have and transformers' classes read, though not among their fields.
OLDER_FIELDS = {"head_dim", "rope_scaling", "rope_theta", "partial_rotary_factor"}
# Further fields that change no number of these models: settings of training, and what converters
# and trainers left behind.
WITHOUT_EFFECT = NEUTRAL_KEYS | {
    "is_llama_config",
    "max_sequence_length",
    "model_type",
    "pretraining_tp",
    "transformers.js_config",
}


@dataclass(frozen=True)
class Llm:
    """A Llama-shaped LLM as a decoder of ours.

    config: the decoder, with cross-attention layers and rows for the tokens that the LLM lacks.
    tokenizer: the LLM's, with those tokens.
    num_rows: rows of the LLM's own embeddings, some of which may belong to no token.
    notes: what a user should know of the graft, a sentence each.
    """

    config: DecoderConfig
    tokenizer: Tokenizer
    num_rows: int
    notes: tuple[str, ...]


def num_layers_with_cross_attention(num_self_layers: int) -> int:
    """Layers of the full stack: one cross-attention layer for every four of self-attention.

    So 32 give 40, with cross-attention at 3, 8, ..., 38, and the last layer is self-attention
    whatever the number: what the images brought in is always read once more.
    """
    return num_self_layers + num_self_layers // (CROSS_ATTENTION_PERIOD - 1)


def read_llm(folder: Path) -> Llm:
    """Read the shape and the tokenizer of an LLM's folder.

    Raises:
        UserError: a file is missing or damaged, the model is of another type, or its configuration
            asks for what the decoder does not do: the field is named.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"{folder} is not the folder of an LLM: it has no {CONFIG_FILE}")
    tokenizer, _ = read_chat_format(folder)
    try:
        fields = _checked_fields(read_json_object(path))
        max_positions, notes = _max_positions(fields)
        config = _decoder_config(fields, max_positions, tokenizer)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    notes += _token_notes(fields, tokenizer)
    return Llm(config, tokenizer, fields["vocab_size"], tuple(notes))


def _checked_fields(content: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with everything filled in, after checking what is not read."""
    family = FAMILIES.get(content.get("model_type", ""))
    if family is None:
        raise UserError(
            f"model_type is {content.get('model_type')!r}; LLMs of the types "
            f"{', '.join(FAMILIES)} can be grafted"
        )
    own = {field.name for field in dataclasses.fields(family)} | OLDER_FIELDS
    known = WITHOUT_EFFECT | FIXED.keys() | (READ & own)
    for name, value in content.items():
        if name not in known and value is not False and value not in (None, "", [], {}):
            raise UserError(
                f"{CONFIG_FILE} has {name}: {value!r}, which nothing here reads; "
                "if the model does not depend on it, remove it there"
            )
    try:
        fields: dict[str, Any] = family.from_dict(dict(content)).to_dict() | {
            name: content[name] for name in FIXED if name in content
        }
    except Exception as error:  # each of the library's checks raises a kind of its own
        reason = " ".join(str(error).split())
        raise UserError(f"{CONFIG_FILE}: {type(error).__name__}: {reason}") from error
    for name, allowed in FIXED.items():
        if name in fields and fields[name] not in allowed:
            raise UserError(
                f"{CONFIG_FILE} has {name}: {fields[name]!r}, needed: "
                f"{' or '.join(repr(value) for value in allowed)}; the decoder does nothing else"
            )
    return fields


def _decoder_config(
    fields: Mapping[str, Any], max_positions: int, tokenizer: Tokenizer
) -> DecoderConfig:
    num_self_layers = fields["num_hidden_layers"]
    read_only = {tokenizer.pad_id, tokenizer.image_id}
    written = [index for index in tokenizer.added_ids if index not in read_only]
    vocab_size = max([fields["vocab_size"], *(index + 1 for index in written)])
    bias = "qkvo" if fields.get("attention_bias") else None
    head_size = fields.get("head_dim")
    shape = {
        "vocab_size": vocab_size,
        "num_extra_embeddings": max(0, tokenizer.vocab_size - vocab_size),
        "hidden_size": fields["hidden_size"],
        "intermediate_size": fields["intermediate_size"],
        "num_layers": num_layers_with_cross_attention(num_self_layers),
        "num_heads": fields["num_attention_heads"],
        "num_kv_heads": fields["num_key_value_heads"],
        **({} if head_size is None else {"head_size": head_size}),
        "max_positions": max_positions,
        "norm_eps": fields["rms_norm_eps"],
        **_rope(fields),
        "tie_embeddings": fields["tie_word_embeddings"],
        "attention_bias": "qkv" if fields["model_type"] == "qwen2" else bias,
        "qk_norm": fields["model_type"] == "qwen3",
    }
    if num_self_layers < CROSS_ATTENTION_PERIOD - 1:
        raise UserError(
            f"num_hidden_layers is {num_self_layers}: a cross-attention layer stands between every "
            f"{CROSS_ATTENTION_PERIOD - 1} layers of the LLM, so it needs as many"
        )
    try:
        return DecoderConfig.model_validate(shape)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{CONFIG_FILE}: {where}: {first['msg']}, got {first['input']!r}"
        ) from error


def _rope(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decoder's base of rotary frequencies and their scaling."""
    given = {name: value for name, value in fields["rope_parameters"].items() if value is not None}
    kind = given.pop("rope_type", None)
    given.pop("type", None)  # its older name
    theta = given.pop("rope_theta", None)
    if given.pop("partial_rotary_factor", 1) != 1:
        raise UserError("partial_rotary_factor is not 1: the decoder rotates whole heads only")
    if kind == "default":
        words: dict[str, str] = {}
    elif kind in ROPE_FIELDS:
        words = rope_words(kind)
        given[words["kind"]] = kind
    else:
        raise UserError(
            f"rope_parameters.rope_type (in older files rope_scaling.type) is {kind!r}; "
            f"there are default, {', '.join(ROPE_FIELDS)}"
        )
    if kind == "dynamic":
        trained, name = fields["max_position_embeddings"], words["original_max_positions"]
        if given.setdefault(name, trained) != trained:
            raise UserError(
                f"rope_parameters.{name} is {given[name]}, and max_position_embeddings {trained}: "
                "'dynamic' starts from the latter, so they must be equal"
            )
    scaling = {ours: given.pop(theirs) for ours, theirs in words.items() if theirs in given}
    if given:
        name, value = next(iter(given.items()))
        raise UserError(f"rope_parameters.{name} is {value!r}, which the kind {kind!r} has not")
    return {"rope_theta": theta, "rope_scaling": scaling or None}


def _max_positions(fields: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Return up to how many tokens every layer attends to all before, and a note if that limits."""
    limit: int = fields["max_position_embeddings"]
    if fields["rope_parameters"].get("rope_type") == "dynamic":
        # transformers gives the trained length, which `factor` stretches, and sets no limit.
        limit = round(limit * fields["rope_parameters"]["factor"])
    window = fields.get("sliding_window")
    kinds = set(fields.get("layer_types") or ())
    strange = kinds - {"full_attention", "sliding_attention"}
    if strange:
        raise UserError(f"layer_types has {sorted(strange)[0]!r}, which the decoder cannot express")
    if window is None or (kinds and "sliding_attention" not in kinds) or window >= limit:
        return limit, []
    note = (
        f"its attention slides over {window} tokens (sliding_window): max_positions is {window}, "
        f"not {limit}, and up to there nothing differs"
    )
    return window, [note]


def _token_notes(fields: Mapping[str, Any], tokenizer: Tokenizer) -> list[str]:
    notes = []
    if tokenizer.added_ids:
        names = tokenizer.decode(tokenizer.added_ids, skip_special=False)
        first = tokenizer.added_ids[0]
        notes.append(
            f"its tokenizer gains {names} from id {first} on; their embeddings start at the mean"
        )
    ends = fields["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]
    strange = [end for end in ends if end is not None and end not in tokenizer.end_ids]
    if strange:
        notes.append(
            f"its {CONFIG_FILE} ends texts at id {strange[0]}, its tokenizer does not: "
            "generation follows the tokenizer"
        )
    return notes
