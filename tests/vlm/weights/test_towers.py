"""Vision towers of other libraries: what our encoder gives is what the library gives."""

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


def test_the_report_accounts_for_every_tensor(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    TOWERS["transformers-clip"](folder)
    tensors = load_file(folder / "model.safetensors")
    # Files of older versions hold this table too.
    tensors["vision_model.embeddings.position_ids"] = torch.arange(17).unsqueeze(0)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    text = sum(name.startswith("text_model.") for name in tensors)
    report = load_tower(make_encoder(folder, tile_size_px=48), folder)
    assert report == (
        f"encoder from {folder}: transformers CLIP, 3 layers of width 16, tiles of 48 px in "
        "patches of 8",
        # 16 tensors a layer; class, patch and position embeddings; two norms.
        "  taken: 55 tensors, converted to our layers",
        "  positions: 4x4 to 6x6 patches, bicubic, not antialiased",
        "  new: tile positions and 1 global layers, gates closed",
        f"  left out: logit_scale (1), text_model ({text}), text_projection (1), "
        "vision_model.embeddings (1), visual_projection (1)",
    )
    assert 55 + text + 4 == len(tensors)


def test_a_head_is_left_out_and_a_tower_as_it_is_says_so(tmp_path: Path) -> None:
    TOWERS["timm-dinov2-registers"](tmp_path / "tower")
    report = "\n".join(load_tower(make_encoder(tmp_path / "tower"), tmp_path / "tower"))
    assert "timm vit_small_patch14_reg4_dinov2, 3 layers" in report
    assert "tensors, timm's modules, as they are\n" in report
    assert "positions: as they are\n" in report and report.endswith("left out: nothing")
    TOWERS["transformers-vit-classifier"](tmp_path / "classifier")
    report = "\n".join(load_tower(make_encoder(tmp_path / "classifier"), tmp_path / "classifier"))
    assert report.endswith("left out: classifier (2)")


def test_sharded_and_half_precision_files_load(tmp_path: Path) -> None:
    model = randomised(SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT)))
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    states = {}
    for name in ("whole", "shards", "half"):
        encoder = make_encoder(tmp_path / name)
        load_tower(encoder, tmp_path / name)
        states[name] = encoder.state_dict()
    for name, tensor in states["whole"].items():
        assert torch.equal(tensor, states["shards"][name])
        assert torch.equal(tensor.bfloat16(), states["half"][name].bfloat16()), name


def test_every_way_to_name_the_statistics_of_pictures_is_read(tmp_path: Path) -> None:
    given = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    TOWERS["transformers-clip"](tmp_path / "clip")
    assert tower_config(tmp_path / "clip").image_mean == CLIP_MEAN
    for name, content in (
        ("processor_config.json", {"image_processor": given}),
        ("preprocessor_config.json", given),
    ):
        (tmp_path / "clip" / name).write_text(json.dumps(content))
        config = tower_config(tmp_path / "clip")
        assert (config.image_mean, config.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        (tmp_path / "clip" / name).unlink()
    TOWERS["transformers-siglip"](tmp_path / "siglip")
    assert tower_config(tmp_path / "siglip").image_std == (0.5, 0.5, 0.5)
    TOWERS["open-clip-quickgelu"](tmp_path / "open_clip")
    assert tower_config(tmp_path / "open_clip").image_mean == (0.4, 0.4, 0.4)
    TOWERS["timm-clip-quickgelu"](tmp_path / "timm")
    assert tower_config(tmp_path / "timm").image_mean == pytest.approx(CLIP_MEAN)


def test_a_towers_picture_may_have_a_rest_beyond_its_patches(tmp_path: Path) -> None:
    vision = {**VISION, "image_size": 37}
    library = transformers_tower(SiglipVisionModel(SiglipVisionConfig(**vision)), tmp_path)
    encoder = make_encoder(tmp_path)
    assert encoder.config.tile_size_px == 32
    report = load_tower(encoder, tmp_path)
    assert "  positions: as they are" in report
    pixels = pixels_of(37)
    theirs = library.final(normalised(encoder.config, pixels))
    torch.testing.assert_close(encode(encoder, pixels[..., :32, :32])[0], theirs, **TOLERANCE)


@pytest.mark.parametrize("name", ["transformers-siglip", "timm-vit", "timm-eva-rope"])
def test_a_pictures_features_do_not_depend_on_its_batch_mates(name: str, tmp_path: Path) -> None:
    TOWERS[name](tmp_path / "tower")
    encoder = make_encoder(tmp_path / "tower", tile_size_px=24)
    load_tower(encoder, tmp_path / "tower")
    for parameter_name, parameter in encoder.named_parameters():
        if "gate" in parameter_name.rpartition(".")[2]:
            nn.init.ones_(parameter)
    tiles, counts, ids = pixels_of(24, tiles=7), torch.tensor([1, 2, 4]), torch.tensor([1, 2, 6])
    together = encoder(tiles, counts, ids)
    assert together.shape == (7, encoder.config.num_tokens, encoder.config.output_size)
    start = 0
    for index, count in enumerate(counts.tolist()):
        one = slice(index, index + 1)
        alone = encoder(tiles[start : start + count], counts[one], ids[one])
        torch.testing.assert_close(together[start : start + count], alone, **TOLERANCE)
        start += count
    # The gates are open: without its second tile, the first one differs.
    cut = encoder(tiles[1:2], counts[:1], ids[:1])
    assert not torch.allclose(together[1, :, :16], cut[0, :, :16], atol=1e-3)


def test_new_parts_are_without_effect_and_can_learn(tmp_path: Path) -> None:
    TOWERS["transformers-clip"](tmp_path)
    encoder = make_encoder(tmp_path)
    load_tower(encoder, tmp_path)
    tiles = pixels_of(NATIVE_PX, tiles=4)
    as_canvas = encoder(tiles, torch.tensor([4]), torch.tensor([6]))
    as_pictures = encoder(tiles, torch.ones(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64))
    torch.testing.assert_close(as_canvas, as_pictures, **TOLERANCE)
    encoder.requires_grad_(True)
    encoder(tiles, torch.tensor([4]), torch.tensor([6])).pow(2).sum().backward()
    idle = {
        name.partition(".")[0]
        for name, parameter in encoder.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }
    # Behind a closed gate only the gate learns, and what is behind it once the gate has moved.
    assert idle == {"pre_tile_embedding", "post_tile_embedding", "global_layers"}
    for name, parameter in encoder.named_parameters():
        if "gate" in name.rpartition(".")[2] and not name.startswith("patch_position"):
            assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"encoder\.layer\.0\.output\.dense\.bias is missing \(needed: \[16\]\)"),
        ("extra", r"encoder\.layer\.3\.output\.dense\.bias \[16\] has no place in the encoder"),
        ("shape", r"encoder\.layer\.0\.output\.dense\.bias is \[15\], needed: \[16\]"),
        (
            "positions",
            r"embeddings\.position_embeddings is \[1, 17, 8\], needed: \[positions, 16\]",
        ),
        ("grid", r"15 position embeddings do not fit 4x4 patches"),
        ("truncated", r"model\.safetensors cannot be read as safetensors"),
    ],
)
def test_a_tower_with_tampered_tensors_is_refused_by_tensor(
    damage: str, message: str, tmp_path: Path
) -> None:
    TOWERS["transformers-vit"](tmp_path)
    encoder = make_encoder(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    bias, positions = "encoder.layer.0.output.dense.bias", "embeddings.position_embeddings"
    if damage == "missing":
        del tensors[bias]
    elif damage == "extra":
        tensors["encoder.layer.3.output.dense.bias"] = tensors[bias].clone()
    elif damage == "shape":
        tensors[bias] = tensors[bias][1:].clone()
    elif damage == "positions":
        tensors[positions] = tensors[positions][..., :8].contiguous()
    elif damage == "grid":
        tensors[positions] = tensors[positions][:, :15].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=message):
        load_tower(encoder, tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", r"blocks\.0\.norm1\.bias is missing \(needed: \[16\]\)"),
        ("extra", r"blocks\.9\.norm1\.bias \[16\] has no place in timm's model"),
        ("shape", r"blocks\.0\.norm1\.bias is \[15\], needed: \[16\]"),
    ],
)
def test_a_tower_as_it_is_with_tampered_tensors_is_refused_by_tensor(
    damage: str, message: str, tmp_path: Path
) -> None:
    TOWERS["timm-dinov3"](tmp_path)
    encoder = make_encoder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bias = tensors.pop("blocks.0.norm1.bias")
    if damage != "missing":
        name = "blocks.9.norm1.bias" if damage == "extra" else "blocks.0.norm1.bias"
        tensors[name] = bias.clone() if damage == "extra" else bias[1:].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        load_tower(encoder, tmp_path)


def test_a_config_of_another_shape_is_refused_by_field(tmp_path: Path) -> None:
    TOWERS["transformers-clip"](tmp_path)
    encoder = make_encoder(tmp_path, activation="gelu", image_mean=(0.5, 0.5, 0.5))
    with pytest.raises(UserError) as caught:
        load_tower(encoder, tmp_path)
    message = str(caught.value)
    assert "model.vision.activation is 'gelu' here and 'quick_gelu' there" in message
    assert "model.vision.image_mean is (0.5, 0.5, 0.5) here and (0.48" in message
    assert "tile_size_px" not in message and "num_global_layers" not in message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "dinov2"}, "vision tower with model_type 'dinov2' cannot become"),
        ({"architecture": "convnext_atto"}, "convnext_atto, a ConvNeXt, is no transformer over"),
        ({"architecture": "vit_unheard_of"}, "cannot build vit_unheard_of: Unknown model"),
        ({"hidden_size": 3}, "has neither model_type nor architecture"),
        ({"model_type": "clip", "vision_config": {"hidden_act": "relu"}}, "hidden_act 'relu'"),
        ({"model_type": "vit", "image_size": [32, 64]}, "a picture of 64x32 pixels"),
    ],
)
def test_an_unknown_architecture_is_refused(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    statistics = {"mean": [0.5] * 3, "std": [0.5] * 3}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": statistics, **config}))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert is_tower_folder(tmp_path)
    with pytest.raises(UserError, match=message):
        tower_config(tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"attentional_pool": True}, "vision_cfg.attentional_pool True"),
        ({"qk_norm": True}, "vision_cfg.qk_norm True"),
        ({"layers": [1, 1, 1, 1]}, "a ResNet"),
        ({"unheard_of": 1}, "has no usable vision_cfg"),
    ],
)
def test_what_open_clip_alone_can_do_is_refused(
    option: dict[str, Any], message: str, tmp_path: Path
) -> None:
    TOWERS["open-clip-quickgelu"](tmp_path / "tower")
    path = tmp_path / "tower" / "open_clip_config.json"
    content = json.loads(path.read_text())
    content["model_cfg"]["vision_cfg"] |= option
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        tower_config(tmp_path / "tower")


def test_pickled_weights_are_never_read(tmp_path: Path) -> None:
    TOWERS["transformers-clip"](tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="has no weights in safetensors"):
        tower_config(tmp_path)


def test_open_clip_with_a_tower_of_timm_is_read_from_its_trunk(tmp_path: Path) -> None:
    name = "vit_small_patch16_224"
    settings: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {"timm_model_name": name, "timm_pool": "", "image_size": 224},
        "text_cfg": OPEN_CLIP_TEXT,
    }
    model = randomised(open_clip.CustomTextCLIP(**settings))
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    content = {"model_cfg": settings, "preprocess_cfg": {"mean": [0.4] * 3, "std": [0.3] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    config = tower_config(tmp_path)
    assert config.tower is None and config.image_std == (0.3, 0.3, 0.3)
    encoder = VisionEncoder(config).requires_grad_(False)
    report = load_tower(encoder, tmp_path)
    assert f"open_clip with timm {name}" in report[0]
    assert report[-1] == "  left out: logit_scale (1), text (17), visual (1)"
    pixels = pixels_of(224, tiles=1)
    one = torch.ones(1, dtype=torch.int64)
    theirs = model.visual.trunk.forward_features(normalised(config, pixels))
    # Twelve layers of width 384 instead of three of 16.
    torch.testing.assert_close(encoder(pixels, one, one), theirs, rtol=0, atol=2e-4)
