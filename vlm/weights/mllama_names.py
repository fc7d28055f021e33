"""Names of tensors: transformers' Mllama checkpoints and ours, both ways. Pure functions."""

import re
from collections.abc import Iterator, Mapping

_VISION_LAYER = """
    self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight self_attn.o_proj.weight
    input_layernorm.weight input_layernorm.bias
    post_attention_layernorm.weight post_attention_layernorm.bias
    fc1.weight=mlp.fc1.weight fc1.bias=mlp.fc1.bias fc2.weight=mlp.fc2.weight fc2.bias=mlp.fc2.bias
"""
_DECODER_LAYER = """
    self_attn.q_proj.weight self_attn.k_proj.weight self_attn.v_proj.weight self_attn.o_proj.weight
    cross_attn.q_proj.weight cross_attn.k_proj.weight cross_attn.v_proj.weight
    cross_attn.o_proj.weight cross_attn.q_norm.weight cross_attn.k_norm.weight
    attn_gate=cross_attn_attn_gate mlp_gate=cross_attn_mlp_gate
    mlp.gate_proj.weight mlp.up_proj.weight mlp.down_proj.weight
    input_layernorm.weight post_attention_layernorm.weight
"""
# Our prefix, Mllama's, and the tensors below them: `ours=theirs` where they differ.
_TENSORS = (
    (
        "encoder.",
        "vision_model.",
        "patch_embedding.weight class_embedding layernorm_pre.weight layernorm_pre.bias "
        "layernorm_post.weight layernorm_post.bias",
    ),
    (
        "encoder.pre_tile_embedding.",
        "vision_model.pre_tile_positional_embedding.",
        "embedding.weight gate",
    ),
    (
        "encoder.post_tile_embedding.",
        "vision_model.post_tile_positional_embedding.",
        "embedding.weight gate",
    ),
    (
        "encoder.patch_position_embedding.",
        "vision_model.gated_positional_embedding.",
        "embedding tile_embedding.weight gate",
    ),
    ("encoder.local_layers.#.", "vision_model.transformer.layers.#.", _VISION_LAYER),
    (
        "encoder.global_layers.#.",
        "vision_model.global_transformer.layers.#.",
        _VISION_LAYER + "gate_attn gate_ffn",
    ),
    ("projector.layers.0.", "multi_modal_projector.", "weight bias"),
    ("decoder.", "language_model.model.", "embed_tokens.weight norm.weight"),
    ("decoder.", "language_model.", "lm_head.weight"),
    ("decoder.layers.#.", "language_model.model.layers.#.", _DECODER_LAYER),
)


def our_name(name: str) -> str | None:
    """Return our name of a checkpoint's tensor, `component.rest`; None if Mllama has no such one.

    Files of transformers 4 and 5 write `language_model.model.`, `language_model.lm_head.`,
    `vision_model.` and `multi_modal_projector.`; the names of the model in memory
    (`model.language_model.`, `lm_head.`, ...) are read too.
    """
    if found := re.fullmatch(r"(?:model\.)?((?:vision_model|multi_modal_projector)\..+)", name):
        return _translated(found[1], _OURS)
    if found := re.fullmatch(r"(?:language_model\.)?(lm_head\..+)", name):
        return _translated(f"language_model.{found[1]}", _OURS)
    if found := re.fullmatch(r"(?:model\.)?language_model\.(?:model\.)?(.+)", name):
        return _translated(f"language_model.model.{found[1]}", _OURS)
    return None


def mllama_name(name: str) -> str | None:
    """Return the name that transformers' files give to our tensor; None if Mllama has none."""
    return _translated(name, _THEIRS)


def name_in_memory(name: str) -> str:
    """Return what transformers 5 calls a tensor of its files in the model that it has loaded."""
    if name.startswith("language_model.lm_head."):
        return name.removeprefix("language_model.")
    if name.startswith("language_model.model."):
        return f"model.language_model.{name.removeprefix('language_model.model.')}"
    return f"model.{name}"


def _translated(name: str, table: Mapping[str, str]) -> str | None:
    """Look a name up, as it is or with its layer's number left open."""
    if name in table:
        return table[name]
    number = re.search(r"layers\.(\d+)\.", name)
    if number is None:
        return None
    found = table.get(name.replace(number[0], "layers.#.", 1))
    return None if found is None else found.replace("layers.#.", number[0], 1)


def _tensor_names() -> Iterator[tuple[str, str]]:
    """Our name and Mllama's of every tensor; `#` stands for a layer's number."""
    for ours, theirs, names in _TENSORS:
        for name in names.split():
            our_rest, _, their_rest = name.partition("=")
            yield ours + our_rest, theirs + (their_rest or our_rest)


_THEIRS = dict(_tensor_names())
_OURS = {theirs: ours for ours, theirs in _THEIRS.items()}
