"""Folders of vision towers: what is read off them, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from encoders.config import CLIP_MEAN
from encoders.vit import VisionEncoder
from vlm.errors import UserError
from vlm.weights.tower_folders import is_tower_folder
from vlm.weights.towers import load_tower, tower_config

MakeEncoder = Callable[..., VisionEncoder]
BuildTower = Callable[[str, Path], Any]


def test_every_way_to_name_the_statistics_of_pictures_is_read(
    tmp_path: Path, build_tower: BuildTower
) -> None:
    given = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    build_tower("transformers-clip", tmp_path / "clip")
    assert tower_config(tmp_path / "clip").image_mean == CLIP_MEAN
    for name, content in (
        ("processor_config.json", {"image_processor": given}),
        ("preprocessor_config.json", given),
    ):
        (tmp_path / "clip" / name).write_text(json.dumps(content))
        config = tower_config(tmp_path / "clip")
        assert (config.image_mean, config.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        (tmp_path / "clip" / name).unlink()
    build_tower("transformers-siglip", tmp_path / "siglip")
    assert tower_config(tmp_path / "siglip").image_std == (0.5, 0.5, 0.5)
    build_tower("open-clip-quickgelu", tmp_path / "open_clip")
    assert tower_config(tmp_path / "open_clip").image_mean == (0.4, 0.4, 0.4)
    build_tower("timm-clip-quickgelu", tmp_path / "timm")
    assert tower_config(tmp_path / "timm").image_mean == pytest.approx(CLIP_MEAN)


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
    damage: str, message: str, tmp_path: Path, build_tower: BuildTower, make_encoder: MakeEncoder
) -> None:
    build_tower("transformers-vit", tmp_path)
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
    damage: str, message: str, tmp_path: Path, build_tower: BuildTower, make_encoder: MakeEncoder
) -> None:
    build_tower("timm-dinov3", tmp_path)
    encoder = make_encoder(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    bias = tensors.pop("blocks.0.norm1.bias")
    if damage != "missing":
        name = "blocks.9.norm1.bias" if damage == "extra" else "blocks.0.norm1.bias"
        tensors[name] = bias.clone() if damage == "extra" else bias[1:].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        load_tower(encoder, tmp_path)


def test_a_config_of_another_shape_is_refused_by_field(
    tmp_path: Path, build_tower: BuildTower, make_encoder: MakeEncoder
) -> None:
    build_tower("transformers-clip", tmp_path)
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
    option: dict[str, Any], message: str, tmp_path: Path, build_tower: BuildTower
) -> None:
    build_tower("open-clip-quickgelu", tmp_path / "tower")
    path = tmp_path / "tower" / "open_clip_config.json"
    content = json.loads(path.read_text())
    content["model_cfg"]["vision_cfg"] |= option
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        tower_config(tmp_path / "tower")


def test_pickled_weights_are_never_read(tmp_path: Path, build_tower: BuildTower) -> None:
    build_tower("transformers-clip", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has pytorch_model\.bin, a pickle"):
        tower_config(tmp_path)
