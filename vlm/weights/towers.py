"""Another library's vision tower as the local layers of our encoder.

Each tile is seen exactly as the library sees a picture of that size. CLIP, SigLIP and plain ViT are
converted: their weights become those of our local layers. Other transformers of timm stay timm's
modules (`VisionConfig.tower`). What a tower does not have starts without effect: tile positions and
global layers behind closed gates, and the table of patch positions on the canvas equal to that of
the tile.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn

from encoders.config import VisionConfig
from encoders.towers import TimmTower
from encoders.vit import VisionEncoder
from vlm.errors import UserError
from vlm.weights.comparison import listed
from vlm.weights.folder import check_same_config
from vlm.weights.mllama_folder import FLOATS
from vlm.weights.tensors import read_tensors
from vlm.weights.tower_folders import Tower, read_tower
from vlm.weights.tower_names import Source

# What a tower's folder cannot say about an encoder of tiles.
TILING: Mapping[str, Any] = MappingProxyType(
    {"max_num_tiles": 4, "num_global_layers": 0, "intermediate_layers": ()}
)
# What a tower decides about an encoder that keeps it as it is; the rest is of the global layers.
AS_IT_IS = frozenset(
    {
        *("patch_size_px", "hidden_size", "num_local_layers", "num_prefix_tokens"),
        *("image_mean", "image_std"),
    }
)
# Parts of a vision tower that pool or classify its tokens, and tensors without effect on them.
HEADS = (
    *("head", "head_dist", "pooler", "classifier", "attn_pool", "proj"),
    *("embeddings.position_ids", "embeddings.mask_token"),
)


def tower_config(folder: Path) -> VisionConfig:
    """Return the encoder that is the tower of a folder, its tiles as large as its pictures.

    Raises:
        UserError: the folder is not a tower's.
    """
    try:
        return VisionConfig.model_validate({**TILING, **read_tower(folder).fields})
    except ValidationError as error:
        raise UserError(f"{folder}: {error.errors()[0]['msg']}") from error


def load_tower(encoder: VisionEncoder, folder: Path) -> tuple[str, ...]:
    """Copy a tower's weights into the local layers; return a report of what came from where.

    The tile size may differ from the tower's picture: its position embeddings are interpolated as
    its library does it. Final norms that a library applies to the pooled token alone are applied to
    every token.

    Raises:
        UserError: the folder is not a tower's, its shape differs from the encoder's, or a tensor is
            missing, unknown or of another shape.
    """
    tower = read_tower(folder)
    decided = set(tower.fields) - {"tile_size_px"}
    if encoder.config.tower is not None:
        decided &= AS_IT_IS
    ours = encoder.config
    theirs = {**ours.model_dump(), **{key: tower.fields[key] for key in decided}}
    check_same_config(ours, VisionConfig.model_validate(theirs), "model.vision", folder)
    load = _load_as_it_is if encoder.config.tower is not None else _load_converted
    with torch.no_grad():
        taken, left_out = load(encoder, tower)
        for layer in encoder.global_layers:
            nn.init.zeros_(layer.get_parameter("gate_attn"))
            nn.init.zeros_(layer.get_parameter("gate_ffn"))
    return _report(tower, encoder.config, taken, left_out)


def _load_converted(encoder: VisionEncoder, tower: Tower) -> tuple[int, list[str]]:
    """Fill our local layers; return how many tensors were taken, and those left out."""
    positions = tower.layout.prefix + tower.layout.positions
    sources = {
        name: tower.layout.source(name)
        for name in encoder.state_dict()
        if name.startswith(("patch_embedding.", "class_embedding", "layernorm_", "local_layers."))
    }
    left_out = _check_tensors(encoder, tower, sources, positions)
    names = {name for source in sources.values() for name in (source.name, source.scale) if name}
    tensors = _read_floats(tower, [*names, positions])
    for name, source in sources.items():
        target = encoder.get_parameter(name)
        target.copy_(_converted(tensors, source).reshape(target.shape))
    _load_positions(encoder, tower, tensors[positions])
    return len(tensors), left_out


def _load_as_it_is(encoder: VisionEncoder, tower: Tower) -> tuple[int, list[str]]:
    """Fill timm's own module, resized by timm; returned as above."""
    prefix, config = tower.layout.prefix, encoder.config
    native = {"tile_size_px": tower.fields["tile_size_px"]}
    trunk = TimmTower(config.model_copy(update=native)).trunk
    expected = trunk.state_dict()
    wanted, left_out, problems = [], [], []
    for name, stored in tower.tensors.items():
        shape, inside = stored.shape, name.removeprefix(prefix)
        if not name.startswith(prefix) or (inside not in expected and _is_head(inside)):
            left_out.append(name)
        elif inside not in expected:
            problems.append(f"{name} {list(shape)} has no place in timm's model")
        elif shape != tuple(expected[inside].shape):
            problems.append(f"{name} is {list(shape)}, needed: {list(expected[inside].shape)}")
        else:
            wanted.append(name)
    # Tables that timm makes with the model are not in its files.
    learned = [name for name, _ in trunk.named_parameters()]
    problems += [
        f"{prefix}{name} is missing (needed: {list(expected[name].shape)})"
        for name in learned
        if prefix + name not in tower.tensors
    ]
    if problems:
        raise UserError(f"{tower.folder} ({tower.kind}) does not fit: {listed(problems)}")
    for name, tensor in _read_floats(tower, wanted).items():
        expected[name.removeprefix(prefix)].copy_(tensor)
    if config.tile_size_px != tower.fields["tile_size_px"]:
        trunk.set_input_size(img_size=(config.tile_size_px, config.tile_size_px))
    target = encoder.tower.trunk.state_dict()
    for name, tensor in trunk.state_dict().items():
        target[name].copy_(tensor)
    return len(wanted), left_out


def _check_tensors(
    encoder: VisionEncoder, tower: Tower, sources: dict[str, Source], positions: str
) -> list[str]:
    """Account for every tensor of the folder; return those that are left out."""
    problems = []
    width = encoder.config.hidden_size
    if positions not in tower.tensors:
        problems.append(f"{positions} is missing (needed: [positions, {width}])")
    elif (shape := tower.tensors[positions].shape)[-1] != width:
        problems.append(f"{positions} is {list(shape)}, needed: [positions, {width}]")
    for ours, source in sources.items():
        needed = list(encoder.get_parameter(ours).shape)
        if source.third is not None:
            needed[0] *= 3
        if source.name not in tower.tensors:
            problems.append(f"{source.name} is missing (needed: {needed})")
        elif _without_ones(shape := tower.tensors[source.name].shape) != _without_ones(needed):
            problems.append(f"{source.name} is {list(shape)}, needed: {needed}")
        if source.scale is not None and source.scale not in tower.tensors:
            problems.append(f"{source.scale} is missing (needed: [{width}])")
        elif source.scale is not None and tower.tensors[source.scale].shape != (width,):
            shape = tower.tensors[source.scale].shape
            problems.append(f"{source.scale} is {list(shape)}, needed: [{width}]")
    known = {positions, *(name for s in sources.values() for name in (s.name, s.scale))}
    left_out = []
    for name in tower.tensors:
        inside = name.removeprefix(tower.layout.prefix)
        if name in known:
            continue
        if name.startswith(tower.layout.prefix) and not _is_head(inside):
            problems.append(f"{name} {list(tower.tensors[name].shape)} has no place in the encoder")
        left_out.append(name)
    if problems:
        unique = list(dict.fromkeys(problems))
        raise UserError(f"{tower.folder} ({tower.kind}) does not fit: {listed(unique)}")
    return left_out


def _is_head(inside: str) -> bool:
    return any(inside == part or inside.startswith(f"{part}.") for part in HEADS)


def _converted(tensors: dict[str, Tensor], source: Source) -> Tensor:
    """Return one of our tensors: a third of a fused one, LayerScale multiplied in."""
    tensor = tensors[source.name]
    if source.third is not None:
        tensor = tensor.chunk(3)[source.third]
    if source.scale is not None:
        scale = tensors[source.scale]
        tensor = tensor * scale.reshape(-1, *[1] * (tensor.dim() - 1))
    return tensor


def _load_positions(encoder: VisionEncoder, tower: Tower, table: Tensor) -> None:
    """Set both tables of patch positions, resized to the tile."""
    config = encoder.config
    old, new = _grids(tower, config)
    table = table.reshape(-1, config.hidden_size)
    first = len(table) - old**2
    if first not in (0, config.num_prefix_tokens):
        raise UserError(
            f"{tower.folder}: {len(table)} position embeddings do not fit {old}x{old} patches"
        )
    # Without a position of its own the class token gets zeros.
    before = table[:first] if first else table.new_zeros(config.num_prefix_tokens, table.shape[1])
    patches = table[first:]
    if new != old:
        patches = _interpolated(patches, old, new, tower.antialias)
    embedding = encoder.patch_position_embedding
    embedding.embedding.copy_(torch.cat([before, patches]))
    canvas = embedding.tile_embedding.weight
    canvas.copy_(
        embedding.embedding.flatten().repeat(canvas.shape[1] // embedding.embedding.numel())
    )


def _grids(tower: Tower, config: VisionConfig) -> tuple[int, int]:
    """Return how many patches a side of the tower's picture has, and one of our tile."""
    patch = config.patch_size_px
    return tower.fields["tile_size_px"] // patch, config.tile_size_px // patch


def _interpolated(patches: Tensor, old: int, new: int, antialias: bool) -> Tensor:
    """Resize a grid of position embeddings (old * old, D) to (new * new, D), bicubically."""
    grid = patches.float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(
        grid, size=(new, new), mode="bicubic", align_corners=False, antialias=antialias
    )
    return grid.permute(0, 2, 3, 1).reshape(new * new, -1)


def _read_floats(tower: Tower, names: Iterable[str]) -> dict[str, Tensor]:
    """Read tensors in float32.

    Raises:
        UserError: one is of another kind than floats.
    """
    found = {name: tower.tensors[name] for name in names}
    strange = [f"{name} is {t.dtype}" for name, t in found.items() if t.dtype not in FLOATS]
    if strange:
        raise UserError(
            f"{tower.folder}: {listed(strange)}; needed: {', '.join(FLOATS)}. Take the weights "
            "that are not quantised"
        )
    return {name: tensor.float() for name, tensor in read_tensors(found).items()}


def _report(tower: Tower, config: VisionConfig, taken: int, left_out: list[str]) -> tuple[str, ...]:
    """Say in lines what came from where, what was interpolated, what is new, what was left out."""
    old, new = _grids(tower, config)
    how = "as they are"
    if config.tower is not None and new != old:
        how = f"{old}x{old} to {new}x{new} patches, by timm"
    elif new != old:
        antialias = "antialiased" if tower.antialias else "not antialiased"
        how = f"{old}x{old} to {new}x{new} patches, bicubic, {antialias}"
    groups: dict[str, int] = {}
    prefix = tower.layout.prefix
    for name in sorted(left_out):
        start = prefix if name.startswith(prefix) else ""
        group = start + name.removeprefix(start).split(".")[0]
        groups[group] = groups.get(group, 0) + 1
    kept = "converted to our layers" if config.tower is None else "timm's modules, as they are"
    return (
        f"encoder from {tower.folder}: {tower.kind}, {config.num_local_layers} layers of width "
        f"{config.hidden_size}, tiles of {config.tile_size_px} px in patches of "
        f"{config.patch_size_px}",
        f"  taken: {taken} tensors, {kept}",
        f"  positions: {how}",
        f"  new: tile positions, global layers ({config.num_global_layers}); gates closed",
        "  left out: " + (", ".join(f"{name} ({n})" for name, n in groups.items()) or "nothing"),
    )


def _without_ones(shape: Iterable[int]) -> list[int]:
    return [size for size in shape if size != 1]
