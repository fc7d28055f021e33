"""Vision towers of other libraries: what our encoder gives is what the library gives."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.model import resize_pos_embed
from safetensors.torch import load_file, save_file
from timm.models._hub import save_for_hf
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from encoders.config import CLIP_MEAN, VisionConfig
from encoders.vit import VisionEncoder
from vlm.errors import UserError
from vlm.weights.tower_folders import is_tower_folder
from vlm.weights.towers import load_tower, tower_config

# float32 rounding over three layers whose states are around 1; queries, keys and values are
# multiplied apart here and together in timm and open_clip. Observed: below 3e-6.
TOLERANCE = {"rtol": 0.0, "atol": 2e-5}
NATIVE_PX, PATCH_PX, LAYERS = 32, 8, 3
VISION = {
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "image_size": NATIVE_PX,
    "patch_size": PATCH_PX,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 20,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TIMM = {
    "img_size": NATIVE_PX,
    "patch_size": PATCH_PX,
    "embed_dim": 16,
    "depth": LAYERS,
    "num_heads": 2,
}
OPEN_CLIP_VISION = {
    "image_size": NATIVE_PX,
    "patch_size": PATCH_PX,
    "width": 16,
    "layers": LAYERS,
    "head_width": 8,
}
OPEN_CLIP_TEXT = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}


@dataclass(frozen=True)
class Library:
    """A library's tower: its layers, and pixels (T, 3, px, px) to its final token states.

    interpolated: the same for another size of picture, by the library's own interpolation.
    """

    layers: nn.ModuleList | nn.Sequential
    final: Callable[[Tensor], Tensor]
    interpolated: Callable[[Tensor], Tensor]


def randomised(model: nn.Module) -> Any:
    """Move every parameter off its start, where biases and class tokens are zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.add_((0.1 if parameter.dim() < 2 else 0.2) * noise)
    return model.eval().requires_grad_(False)


def transformers_tower(model: Any, folder: Path) -> Library:
    model = randomised(model)
    model.save_pretrained(folder)
    if isinstance(model, ViTModel | ViTForImageClassification):
        tower = model if isinstance(model, ViTModel) else model.vit
        layers: nn.ModuleList = tower.layers
        norm: nn.Module = nn.Identity()  # its last state is normalised
    else:
        tower = model if not isinstance(model, CLIPModel | SiglipModel) else model.vision_model
        layers = tower.encoder.layers
        # CLIP normalises the token that it pools, and gives the others as they are.
        clip = isinstance(model, CLIPModel | CLIPVisionModel)
        norm = tower.post_layernorm if clip else nn.Identity()
    return Library(
        layers,
        lambda pixels: norm(tower(pixels).last_hidden_state),
        lambda pixels: norm(tower(pixels, interpolate_pos_encoding=True).last_hidden_state),
    )


def timm_tower(folder: Path, name: str, **arguments: Any) -> Library:
    model = randomised(timm.create_model(name, **{**TIMM, **arguments}))
    save_for_hf(model, str(folder), safe_serialization=True)

    def final(pixels: Tensor, model: Any = model) -> Tensor:
        return model.fc_norm(model.forward_features(pixels))

    def interpolated(pixels: Tensor) -> Tensor:
        larger = deepcopy(model)
        larger.set_input_size(tuple(pixels.shape[-2:]))
        return final(pixels, larger)

    return Library(model.blocks, final, interpolated)


def open_clip_tower(folder: Path, quick_gelu: bool = False, **vision: Any) -> Library:
    settings: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {**OPEN_CLIP_VISION, **vision},
        "text_cfg": OPEN_CLIP_TEXT,
        "quick_gelu": quick_gelu,
    }
    model = randomised(open_clip.CLIP(**settings))
    folder.mkdir()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    content = {"model_cfg": settings, "preprocess_cfg": {"mean": [0.4] * 3, "std": [0.3] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    visual = model.visual

    def tokens(visual: Any, pixels: Tensor) -> Tensor:
        if "timm_model_name" in vision:
            return visual.trunk.forward_features(pixels)
        return visual.ln_post(visual.transformer(visual._embeds(pixels)))

    def interpolated(pixels: Tensor) -> Tensor:
        size = {**settings["vision_cfg"], "image_size": pixels.shape[-1]}
        larger = open_clip.CLIP(**{**settings, "vision_cfg": size})
        state = model.state_dict()
        resize_pos_embed(state, larger)
        larger.load_state_dict(state)
        return tokens(larger.eval().requires_grad_(False).visual, pixels)

    layers = visual.trunk.blocks if "timm_model_name" in vision else visual.transformer.resblocks
    return Library(layers, lambda pixels: tokens(visual, pixels), interpolated)


TOWERS: dict[str, Callable[[Path], Library]] = {
    "transformers-clip": lambda folder: transformers_tower(
        CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT)), folder
    ),
    "transformers-clip-vision-gelu": lambda folder: transformers_tower(
        CLIPVisionModel(CLIPVisionConfig(**VISION, hidden_act="gelu", layer_norm_eps=1e-3)), folder
    ),
    "transformers-siglip": lambda folder: transformers_tower(
        SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT)), folder
    ),
    "transformers-siglip-vision": lambda folder: transformers_tower(
        SiglipVisionModel(SiglipVisionConfig(**VISION, vision_use_head=False)), folder
    ),
    "transformers-vit": lambda folder: transformers_tower(ViTModel(ViTConfig(**VISION)), folder),
    "transformers-vit-classifier": lambda folder: transformers_tower(
        ViTForImageClassification(ViTConfig(**VISION, layer_norm_eps=1e-2)), folder
    ),
    "timm-vit": lambda folder: timm_tower(folder, "vit_tiny_patch16_224"),
    "timm-vit-gap": lambda folder: timm_tower(folder, "vit_base_patch16_gap_224"),
    "timm-siglip": lambda folder: timm_tower(folder, "vit_base_patch16_siglip_224"),
    "timm-clip-quickgelu": lambda folder: timm_tower(folder, "vit_base_patch16_clip_quickgelu_224"),
    "timm-layer-scale-no-class-position": lambda folder: timm_tower(
        folder, "vit_small_patch14_dinov2", no_embed_class=True, init_values=0.5
    ),
    "open-clip-quickgelu": lambda folder: open_clip_tower(folder, quick_gelu=True),
    "timm-eva-rope": lambda folder: timm_tower(folder, "eva02_tiny_patch14_224"),
    "timm-dinov2-registers": lambda folder: timm_tower(folder, "vit_small_patch14_reg4_dinov2"),
    "timm-dinov3": lambda folder: timm_tower(folder, "vit_small_patch16_dinov3"),
    "open-clip-layer-scale": lambda folder: open_clip_tower(
        folder, ls_init_value=0.5, no_ln_pre=True, norm_kwargs={"eps": 1e-3}
    ),
}


@pytest.fixture(scope="module", params=TOWERS)
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A library's tower and the folder it was saved to."""
    folder = tmp_path_factory.mktemp("towers") / request.param
    return TOWERS[request.param](folder), folder


def make_encoder(folder: Path, **changes: Any) -> VisionEncoder:
    """An encoder of the tower's shape with two intermediate states and a global layer."""
    more = {"intermediate_layers": (1, LAYERS - 1), "num_global_layers": 1, **changes}
    config = VisionConfig.model_validate({**tower_config(folder).model_dump(), **more})
    torch.manual_seed(1)
    return VisionEncoder(config).requires_grad_(False)


def pixels_of(size_px: int, tiles: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(size_px)
    return torch.randint(256, (tiles, 3, size_px, size_px), dtype=torch.uint8, generator=generator)


def encode(encoder: VisionEncoder, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features of one-tile pictures: the final state and the two intermediate ones."""
    ones = torch.ones(len(pixels), dtype=torch.int64)
    features = encoder(pixels, ones, ones)
    final, states = features.split([16, 32], dim=-1)
    return final, *states.unflatten(-1, (16, 2)).unbind(-1)


def normalised(config: VisionConfig, pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(s).view(3, 1, 1) for s in (config.image_mean, config.image_std))
    return (pixels / 255 - mean) / std


def library_states(library: Library, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The library's final state, and the states that enter its second and last layer."""
    entering: dict[int, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, call, i=i: entering.__setitem__(i, call[0]))
        for i, layer in enumerate(library.layers)
    ]
    final = library.final(pixels)
    for hook in hooks:
        hook.remove()
    return final, entering[1], entering[LAYERS - 1]


def test_a_towers_features_equal_its_librarys(tower: tuple[Library, Path]) -> None:
    library, folder = tower
    encoder = make_encoder(folder)
    assert encoder.config.tile_size_px == NATIVE_PX
    load_tower(encoder, folder)
    pixels = pixels_of(NATIVE_PX)
    theirs = library_states(library, normalised(encoder.config, pixels))
    for ours, their in zip(encode(encoder, pixels), theirs, strict=True):
        torch.testing.assert_close(ours, their, **TOLERANCE)
    # Rows differ, so that equal features are no accident.
    assert theirs[0].std(dim=1).min() > 0.1


@pytest.mark.parametrize("size_px", [24, 56])
def test_positions_are_interpolated_as_the_library_does_it(
    tower: tuple[Library, Path], size_px: int
) -> None:
    library, folder = tower
    encoder = make_encoder(folder, tile_size_px=size_px)
    report = "\n".join(load_tower(encoder, folder))
    grid = size_px // PATCH_PX
    how = "bicubic, not antialiased" if "transformers" in folder.name else "bicubic, antialiased"
    how = how if encoder.config.tower is None else "by timm"
    assert f"positions: 4x4 to {grid}x{grid} patches, {how}\n" in report
    pixels = pixels_of(size_px)
    theirs = library.interpolated(normalised(encoder.config, pixels))
    torch.testing.assert_close(encode(encoder, pixels)[0], theirs, **TOLERANCE)
