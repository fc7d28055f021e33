"""Vision towers of other libraries: what our encoder gives is what the library gives."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from encoders.config import VisionConfig
from encoders.vit import VisionEncoder
from vlm.weights.towers import load_tower, tower_config

MakeEncoder = Callable[..., VisionEncoder]
BuildTower = Callable[[str, Path], Any]
# float32 rounding over three layers whose states are around 1; queries, keys and values are
# multiplied apart here and together in timm and open_clip.
TOLERANCE = {"rtol": 0.0, "atol": 2e-5}


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


def library_states(library: Any, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The library's final state, and the states that enter its second and last layer."""
    entering: dict[int, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, call, i=i: entering.__setitem__(i, call[0]))
        for i, layer in enumerate(library.layers)
    ]
    final = library.final(pixels)
    for hook in hooks:
        hook.remove()
    return final, entering[1], entering[2]


def test_a_towers_features_equal_its_librarys(
    tower: tuple[Any, Path], make_encoder: MakeEncoder
) -> None:
    library, folder = tower
    encoder = make_encoder(folder)
    assert encoder.config.tile_size_px == 32
    load_tower(encoder, folder)
    pixels = pixels_of(32)
    theirs = library_states(library, normalised(encoder.config, pixels))
    for ours, their in zip(encode(encoder, pixels), theirs, strict=True):
        torch.testing.assert_close(ours, their, **TOLERANCE)
    # Rows differ, so that equal features are no accident.
    assert theirs[0].std(dim=1).min() > 0.1


@pytest.mark.parametrize("size_px", [24, 56])
def test_positions_are_interpolated_as_the_library_does_it(
    tower: tuple[Any, Path], size_px: int, make_encoder: MakeEncoder
) -> None:
    library, folder = tower
    encoder = make_encoder(folder, tile_size_px=size_px)
    report = "\n".join(load_tower(encoder, folder))
    grid = size_px // 8
    how = "bicubic, not antialiased" if "transformers" in folder.name else "bicubic, antialiased"
    how = how if encoder.config.tower is None else "by timm"
    assert f"positions: 4x4 to {grid}x{grid} patches, {how}\n" in report
    pixels = pixels_of(size_px)
    theirs = library.interpolated(normalised(encoder.config, pixels))
    torch.testing.assert_close(encode(encoder, pixels)[0], theirs, **TOLERANCE)


def test_the_report_accounts_for_every_tensor(
    tmp_path: Path, build_tower: BuildTower, make_encoder: MakeEncoder
) -> None:
    folder = tmp_path / "clip"
    build_tower("transformers-clip", folder)
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
        "  new: tile positions, global layers (1); gates closed",
        f"  left out: logit_scale (1), text_model ({text}), text_projection (1), "
        "vision_model.embeddings (1), visual_projection (1)",
    )
    assert 55 + text + 4 == len(tensors)


def test_a_head_is_left_out_and_a_tower_as_it_is_says_so(
    tmp_path: Path, build_tower: BuildTower, make_encoder: MakeEncoder
) -> None:
    build_tower("timm-dinov2-registers", tmp_path / "tower")
    report = "\n".join(load_tower(make_encoder(tmp_path / "tower"), tmp_path / "tower"))
    assert "timm vit_small_patch14_reg4_dinov2, 3 layers" in report
    assert "tensors, timm's modules, as they are\n" in report
    assert "positions: as they are\n" in report and report.endswith("left out: nothing")
    build_tower("transformers-vit-classifier", tmp_path / "classifier")
    report = "\n".join(load_tower(make_encoder(tmp_path / "classifier"), tmp_path / "classifier"))
    assert report.endswith("left out: classifier (2)")


def test_sharded_and_half_precision_files_load(
    tmp_path: Path, build_tower: BuildTower, make_encoder: MakeEncoder
) -> None:
    build_tower("transformers-siglip", tmp_path / "whole")
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    for name, content, size in (("shards", tensors, "20KB"), ("half", half, "1GB")):
        (tmp_path / name).mkdir()
        save_torch_state_dict(content, tmp_path / name, max_shard_size=size)
        shutil.copy(tmp_path / "whole" / "config.json", tmp_path / name)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    states = {}
    for name in ("whole", "shards", "half"):
        encoder = make_encoder(tmp_path / name)
        load_tower(encoder, tmp_path / name)
        states[name] = encoder.state_dict()
    for name, tensor in states["whole"].items():
        assert torch.equal(tensor, states["shards"][name])
        assert torch.equal(tensor.bfloat16(), states["half"][name].bfloat16()), name


def test_a_towers_picture_may_have_a_rest_beyond_its_patches(
    tmp_path: Path, build_tower: BuildTower, make_encoder: MakeEncoder
) -> None:
    library = build_tower("transformers-siglip-of-37-px", tmp_path)
    encoder = make_encoder(tmp_path)
    assert encoder.config.tile_size_px == 32
    report = load_tower(encoder, tmp_path)
    assert "  positions: as they are" in report
    pixels = pixels_of(37)
    theirs = library.final(normalised(encoder.config, pixels))
    torch.testing.assert_close(encode(encoder, pixels[..., :32, :32])[0], theirs, **TOLERANCE)


@pytest.mark.parametrize("name", ["transformers-siglip", "timm-vit", "timm-eva-rope"])
def test_a_pictures_features_do_not_depend_on_its_batch_mates(
    name: str, tmp_path: Path, build_tower: BuildTower, make_encoder: MakeEncoder
) -> None:
    build_tower(name, tmp_path / "tower")
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


def test_new_parts_are_without_effect_and_can_learn(
    tmp_path: Path, build_tower: BuildTower, make_encoder: MakeEncoder
) -> None:
    build_tower("transformers-clip", tmp_path)
    encoder = make_encoder(tmp_path)
    load_tower(encoder, tmp_path)
    tiles = pixels_of(32, tiles=4)
    as_canvas = encoder(tiles, torch.tensor([4]), torch.tensor([6]))
    as_pictures = encoder(tiles, torch.ones(4, dtype=torch.int64), torch.ones(4, dtype=torch.int64))
    torch.testing.assert_close(as_canvas, as_pictures, **TOLERANCE)
    encoder.requires_grad_(True)
    encoder(tiles, torch.tensor([4]), torch.tensor([6])).pow(2).sum().backward()
    # The gate between two equal tables of positions has no gradient but for rounding.
    idle = {
        name.partition(".")[0]
        for name, parameter in encoder.named_parameters()
        if (parameter.grad is None or not parameter.grad.any())
        and name != "patch_position_embedding.gate"
    }
    # Behind a closed gate only the gate learns, and what is behind it once the gate has moved.
    assert idle == {"pre_tile_embedding", "post_tile_embedding", "global_layers"}
    for name, parameter in encoder.named_parameters():
        if "gate" in name.rpartition(".")[2] and not name.startswith("patch_position"):
            assert parameter.grad is not None and parameter.grad.any(), name


def test_open_clip_with_a_tower_of_timm_is_read_from_its_trunk(tmp_path: Path) -> None:
    name = "vit_small_patch16_224"
    settings: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": {"timm_model_name": name, "timm_pool": "", "image_size": 224},
        "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1},
    }
    model = open_clip.CustomTextCLIP(**settings).eval().requires_grad_(False)
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
    torch.testing.assert_close(encoder(pixels, one, one), theirs, **TOLERANCE)
