"""Small vision towers of other libraries, with random weights, in folders as they save them."""

import json
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
from safetensors.torch import save_file
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

from encoders.config import VisionConfig
from encoders.vit import VisionEncoder
from vlm.weights.towers import tower_config

# Four by four patches and three layers; the tests count on it.
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


# The last pixels of these pictures fill no patch; there is no size that they are interpolated to.
WITH_A_REST = "transformers-siglip-of-37-px"


@pytest.fixture(scope="session")
def build_tower() -> Callable[[str, Path], Library]:
    """`build_tower(name, folder)` saves a tower to a folder and returns it."""

    def build(name: str, folder: Path) -> Library:
        if name == WITH_A_REST:
            config = SiglipVisionConfig(**{**VISION, "image_size": 37})
            return transformers_tower(SiglipVisionModel(config), folder)
        return TOWERS[name](folder)

    return build


@pytest.fixture(scope="module", params=TOWERS)
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A library's tower and the folder it was saved to."""
    folder = tmp_path_factory.mktemp("towers") / request.param
    return TOWERS[request.param](folder), folder


@pytest.fixture(scope="session")
def make_encoder() -> Callable[..., VisionEncoder]:
    """`make_encoder(folder, **changes)`: of the tower's shape, a global layer on top.

    Beside the final state it gives those that enter the second and the last layer.
    """

    def make(folder: Path, **changes: Any) -> VisionEncoder:
        more = {"intermediate_layers": (1, LAYERS - 1), "num_global_layers": 1, **changes}
        config = VisionConfig.model_validate({**tower_config(folder).model_dump(), **more})
        torch.manual_seed(1)
        return VisionEncoder(config).requires_grad_(False)

    return make
