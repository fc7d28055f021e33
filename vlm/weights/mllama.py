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
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from encoders.config import CLIP_MEAN, CLIP_STD, VisionConfig
from encoders.tiling import supported_canvases
from projector.config import ProjectorConfig
from vlm.config import VLMConfig
from vlm.decoder.config import DecoderConfig, RopeScaling
from vlm.errors import UserError
from vlm.weights.comparison import differences
from vlm.weights.mllama_schema import (
    NUM_EXTRA_EMBEDDINGS,
    MllamaFile,
    TextSection,
    read_mllama,
    rope_parameters,
    rope_words,
)

# The first transformers whose intermediate states leave the layers that name them.
LEAVING_SINCE = (4, 55)
# What we write says so by this version, the oldest that we support.
WRITTEN_VERSION = "5.17.0"


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
    file = read_mllama(config)
    try:
        return VLMConfig(
            vision=_vision_from(file, image_mean, image_std),
            projector=ProjectorConfig(kind="linear"),
            decoder=_decoder_from(file.text_config),
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
    file: MllamaFile,
    image_mean: tuple[float, float, float],
    image_std: tuple[float, float, float],
) -> VisionConfig:
    vision = file.vision_config
    shift = 1 if _states_leave(file.transformers_version) else 0
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


def _decoder_from(text: TextSection) -> DecoderConfig:
    rope = rope_parameters(text)
    scaling = None
    if rope["rope_type"] != "default":
        given = {ours: rope.get(theirs) for ours, theirs in rope_words(rope["rope_type"]).items()}
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
        words = rope_words(scaling.kind)
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


def _states_leave(version: str | None) -> bool:
    """Whether the transformers of this version takes states that leave their layers."""
    number = re.match(r"(\d+)\.(\d+)", version or WRITTEN_VERSION)
    return number is None or (int(number[1]), int(number[2])) >= LEAVING_SINCE
