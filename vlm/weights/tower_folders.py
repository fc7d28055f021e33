"""Folders of other libraries' vision towers: what shape they have and how their tensors are named.

Read are transformers' CLIP, SigLIP and ViT (`config.json` with a `model_type`), timm's
VisionTransformer (`config.json` with an `architecture`) and open_clip's vision towers
(`open_clip_config.json`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from encoders.config import CLIP_MEAN, CLIP_STD
from encoders.towers import build_trunk, trunk_shape
from vlm.errors import UserError
from vlm.weights.folder import CONFIG_FILE, is_model_folder
from vlm.weights.tensors import StoredTensor, read_header, stored_tensors
from vlm.weights.tower_names import CLIP, OPEN_CLIP, TIMM, VIT, Layout

OPEN_CLIP_CONFIG_FILE = "open_clip_config.json"
OPEN_CLIP_WEIGHTS_FILE = "open_clip_model.safetensors"
PREPROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
SUPPORTED = "clip, siglip and vit of transformers, and transformers of timm and open_clip"
# timm's names where it pools before the last norm.
POOLED_FIRST = {**TIMM.modules, "layernorm_post": "fc_norm.{}"}
# The MLP's width in global layers, over a tower whose own layers have another form.
GLOBAL_MLP_RATIO = 4
# Statistics of SigLIP's and ViT's pictures: https://arxiv.org/abs/2010.11929, section B.1.1.
HALF = (0.5, 0.5, 0.5)
# Names of transformers' activations.
ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


@dataclass(frozen=True)
class Tower:
    """A tower in a folder.

    kind: library and architecture, for the report.
    fields: of `VisionConfig`, as far as the tower decides them; its tile is the native picture.
    tensors: every tensor in the folder, by name.
    antialias: whether the library filters when it makes a grid of positions smaller.
    """

    folder: Path
    kind: str
    fields: Mapping[str, Any]
    layout: Layout
    tensors: Mapping[str, StoredTensor]
    antialias: bool


def is_tower_folder(folder: Path) -> bool:
    """Whether a folder is another library's: one with a config that is not of our model folders."""
    if (folder / OPEN_CLIP_CONFIG_FILE).is_file():
        return True
    return (folder / CONFIG_FILE).is_file() and not is_model_folder(folder)


def read_tower(folder: Path) -> Tower:
    """Read what a folder's tower is, and the names and shapes of its tensors, but no weights.

    A folder of open_clip that also holds transformers' files is read as whichever has weights.

    Raises:
        UserError: an unsupported architecture, or a missing or damaged file.
    """
    if (folder / OPEN_CLIP_WEIGHTS_FILE).is_file():
        return _read_open_clip(folder)
    config = _read_json(folder / CONFIG_FILE)
    if "architecture" in config:
        return _read_timm(folder, config)
    if "model_type" in config:
        return _read_transformers(folder, str(config["model_type"]))
    raise UserError(
        f"{folder / CONFIG_FILE} has neither model_type nor architecture; "
        f"vision towers that can be read: {SUPPORTED}"
    )


def _read_transformers(folder: Path, model_type: str) -> Tower:
    from transformers import AutoConfig

    names = {"clip": "CLIP", "siglip": "SigLIP", "vit": "ViT"}
    family = model_type.removesuffix("_vision_model")
    if family not in names:
        raise _unsupported(folder, f"model_type {model_type!r}")
    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    config = config.vision_config if model_type in ("clip", "siglip") else config
    if config.hidden_act not in ACTIVATIONS:
        raise _unsupported(folder, f"hidden_act {config.hidden_act!r}")
    mean, std = _statistics(folder, (CLIP_MEAN, CLIP_STD) if family == "clip" else (HALF, HALF))
    tensors = stored_tensors(folder)
    layout = VIT if family == "vit" else CLIP
    prefixes = ("vision_model.", "vit.", "")
    prefix = next((p for p in prefixes if p + layout.positions in tensors), "")
    fields = {
        **_grid(folder, config.image_size, config.patch_size),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_heads": config.num_attention_heads,
        "num_local_layers": config.num_hidden_layers,
        "norm_eps": config.layer_norm_eps,
        "outer_norm_eps": config.layer_norm_eps,
        "num_prefix_tokens": int(family != "siglip"),
        "pre_norm": family == "clip",
        "patch_bias": family != "clip",
        "attention_bias": True,
        "activation": ACTIVATIONS[config.hidden_act],
        "image_mean": mean,
        "image_std": std,
    }
    kind = f"transformers {names[family]}"
    return Tower(folder, kind, fields, replace(layout, prefix=prefix), tensors, antialias=False)


def _read_timm(folder: Path, config: Mapping[str, Any]) -> Tower:
    name, arguments = str(config["architecture"]), config.get("model_args", {})
    tensors = stored_tensors(folder)
    pictures = config.get("pretrained_cfg", {})
    try:
        statistics = pictures["mean"], pictures["std"]
    except KeyError as error:
        raise UserError(
            f"{folder / CONFIG_FILE}: pretrained_cfg.{error.args[0]} is missing"
        ) from None
    fields, layout = _timm_shape(folder, name, arguments, statistics)
    return Tower(folder, f"timm {name}", fields, layout, tensors, antialias=True)


def _read_open_clip(folder: Path) -> Tower:
    from open_clip import CLIPVisionCfg

    content = _read_json(folder / OPEN_CLIP_CONFIG_FILE)
    tensors = read_header(folder / OPEN_CLIP_WEIGHTS_FILE)
    pictures = content.get("preprocess_cfg", {})
    statistics = pictures.get("mean", CLIP_MEAN), pictures.get("std", CLIP_STD)
    try:
        config = CLIPVisionCfg(**content["model_cfg"]["vision_cfg"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / OPEN_CLIP_CONFIG_FILE} has no usable vision_cfg") from error
    if config.timm_model_name is not None:
        name = config.timm_model_name
        fields, layout = _timm_shape(folder, name, {}, statistics)
        layout = replace(layout, prefix="visual.trunk.")
        if "visual.trunk.fc_norm.weight" in tensors:  # open_clip pools otherwise than timm
            layout = replace(layout, modules=POOLED_FIRST)
        return Tower(folder, f"open_clip with timm {name}", fields, layout, tensors, antialias=True)
    defaults = CLIPVisionCfg()
    for option in (
        *("attentional_pool", "block_type", "qk_norm", "scaled_cosine_attn", "scale_heads"),
        *("scale_attn_inner", "scale_attn", "scale_fc", "act_kwargs"),
    ):
        if (value := vars(config)[option]) != vars(defaults)[option]:
            raise _unsupported(folder, f"vision_cfg.{option} {value!r}")
    if not isinstance(config.layers, int):
        raise _unsupported(folder, "a ResNet")
    eps = (config.norm_kwargs or {}).get("eps", 1e-5)
    fields = {
        **_grid(folder, config.image_size, config.patch_size),
        "hidden_size": config.width,
        "intermediate_size": int(config.width * config.mlp_ratio),
        "num_heads": config.width // config.head_width,
        "num_local_layers": config.layers,
        "norm_eps": eps,
        "outer_norm_eps": eps,
        "num_prefix_tokens": 1,
        "pre_norm": not config.no_ln_pre,
        "patch_bias": False,
        "attention_bias": True,
        "activation": "quick_gelu" if content["model_cfg"].get("quick_gelu") else "gelu",
        "image_mean": tuple(statistics[0]),
        "image_std": tuple(statistics[1]),
    }
    layout = OPEN_CLIP if config.ls_init_value is not None else replace(OPEN_CLIP, scales={})
    return Tower(folder, "open_clip ViT", fields, layout, tensors, antialias=True)


def _timm_shape(
    folder: Path, name: str, arguments: Mapping[str, Any], statistics: tuple[Any, Any]
) -> tuple[dict[str, Any], Layout]:
    """Read fields and names off timm's model: a config names it, the rest is in timm's code."""
    try:
        with torch.device("meta"):
            model = build_trunk(name, arguments)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from error
    fields = {
        **trunk_shape(model),
        **_grid(folder, model.patch_embed.img_size, model.patch_embed.patch_size),
        "image_mean": tuple(statistics[0]),
        "image_std": tuple(statistics[1]),
    }
    local = _as_local_layers(model)
    if local is not None:
        pooled_first = isinstance(model.fc_norm, nn.LayerNorm)
        layout = replace(
            TIMM,
            modules=POOLED_FIRST if pooled_first else TIMM.modules,
            scales={} if isinstance(model.blocks[0].ls1, nn.Identity) else TIMM.scales,
        )
        return {**fields, **local}, layout
    size = {"img_size", "num_classes", "global_pool", "in_chans"}
    kept = {key: value for key, value in arguments.items() if key not in size}
    as_it_is = {
        "intermediate_size": GLOBAL_MLP_RATIO * model.embed_dim,
        "num_heads": model.blocks[0].attn.num_heads,
        "tower": {"name": name, "arguments": kept},
    }
    return {**fields, **as_it_is}, TIMM


def _as_local_layers(model: Any) -> dict[str, Any] | None:
    """Return the fields with which our local layers compute what timm's model does, if they can."""
    from timm.layers.activations import GELU, GELUTanh, QuickGELU
    from timm.layers.attention import Attention
    from timm.layers.mlp import Mlp
    from timm.models.vision_transformer import Block, VisionTransformer

    activations = {nn.GELU: "gelu", GELU: "gelu", GELUTanh: "gelu_tanh", QuickGELU: "quick_gelu"}
    block = model.blocks[0]
    if type(model) is not VisionTransformer or type(block) is not Block:
        return None
    if type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        return None
    plain = (
        isinstance(block.norm1, nn.LayerNorm)
        and isinstance(block.attn.q_norm, nn.Identity)
        and isinstance(block.attn.norm, nn.Identity)
        and isinstance(block.mlp.norm, nn.Identity)
        and type(block.mlp.act) in activations
        and (block.attn.qkv.bias is None) == (block.attn.proj.bias is None)
        and model.num_reg_tokens == 0
        and model.pos_embed is not None
        and any(isinstance(norm, nn.LayerNorm) for norm in (model.norm, model.fc_norm))
    )
    if not plain:
        return None
    return {
        "intermediate_size": block.mlp.fc1.out_features,
        "num_heads": block.attn.num_heads,
        "norm_eps": block.norm1.eps,
        "outer_norm_eps": block.norm1.eps,
        "pre_norm": isinstance(model.norm_pre, nn.LayerNorm),
        "patch_bias": model.patch_embed.proj.bias is not None,
        "attention_bias": block.attn.proj.bias is not None,
        "activation": activations[type(block.mlp.act)],
    }


def _grid(folder: Path, image_size: Any, patch_size: Any) -> dict[str, int]:
    """Tile and patch in pixels; pixels beyond the last whole patch are seen by no library."""
    sides = []
    for name, value in (("picture", image_size), ("patch", patch_size)):
        height, width = (value, value) if isinstance(value, int) else tuple(value)
        if height != width:
            raise _unsupported(folder, f"a {name} of {width}x{height} pixels (needed: a square)")
        sides.append(int(height))
    picture, patch = sides
    return {"tile_size_px": picture // patch * patch, "patch_size_px": patch}


def _statistics(folder: Path, default: tuple[Any, Any]) -> tuple[Any, Any]:
    """Mean and deviation of pictures from transformers' files, or else the family's."""
    for name in PREPROCESSOR_FILES:
        if (folder / name).is_file():
            content = _read_json(folder / name)
            content = content.get("image_processor", content)
            if "image_mean" in content and "image_std" in content:
                return tuple(content["image_mean"]), tuple(content["image_std"])
    return default


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values")
    return content


def _unsupported(folder: Path, what: str) -> UserError:
    return UserError(
        f"{folder}: a vision tower with {what} cannot become our local layers; supported are "
        f"{SUPPORTED}"
    )
