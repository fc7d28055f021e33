"""Stages that start from the vision tower of another library."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from timm.models._hub import save_for_hf
from transformers import CLIPConfig, CLIPModel

import vlm
from training.config import TrainConfig
from training.dry_run import describe_run
from training.run import train_stage
from training.setup import build_setup
from vlm.config import VLMConfig, load_config
from vlm.errors import UserError
from vlm.weights.folder import read_component, read_folder_config

MakeConfig = Callable[..., TrainConfig]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
TIMM = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
TILING = {"tile_size_px": 24, "num_global_layers": 1, "intermediate_layers": [1]}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of transformers with random weights: two layers, pictures of 16 px."""
    torch.manual_seed(0)
    vision = {**SIZES, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8}
    text = {**SIZES, "num_hidden_layers": 1, "vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2}
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def eva(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An EVA of timm, whose rotary tables are not in its file."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("eva")
    model = timm.create_model("eva02_tiny_patch14_224", **TIMM)
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder


@pytest.fixture
def tower_stage(stage_config: MakeConfig, tmp_path: Path) -> MakeConfig:
    """`tower_stage(stage, tower, **changes)`: a stage whose encoder is the tower's.

    The configuration is written as YAML and read, as a user's is.
    """

    def make(stage: str, tower: Path, **changes: Any) -> TrainConfig:
        plain = stage_config(stage, tmp_path / stage, **changes).model_dump(mode="json")
        plain["model"]["vision"] = {"from": str(tower), **TILING}
        plain["init_from"]["encoder"] = str(tower)
        file = tmp_path / f"{stage}.yaml"
        file.write_text(yaml.safe_dump(plain))
        return load_config(TrainConfig, file)

    return make


def test_align_keeps_the_tower_and_the_model_loads_bit_equal(
    clip: Path, tower_stage: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tower_stage("align", clip)
    assert config.model.vision.activation == "quick_gelu"
    setup = build_setup(config)
    start = {name: t.clone() for name, t in setup.modules["encoder"].state_dict().items()}
    batch = next(setup.train.batches()).inputs.images
    assert batch is not None
    train_stage(config)
    output = capsys.readouterr().out
    assert f"encoder from {clip}: transformers CLIP, 2 layers of width 16" in output
    assert "positions: 2x2 to 3x3 patches, bicubic, not antialiased" in output
    assert "left out: logit_scale (1), text_model (" in output
    # The encoder is frozen, and a model folder needs nothing but itself.
    saved = read_component(config.out, "encoder")
    taken = [name for name in start if not name.startswith(("global", "pre_tile", "post_tile"))]
    assert len(taken) > 30 and all(torch.equal(saved[name], start[name]) for name in taken)
    assert str(clip) not in (config.out / "config.json").read_text()
    assert read_folder_config(config.out).model == config.model
    loaded = vlm.load(config.out, device="cpu", dtype="float32").network
    assert {n: t.tolist() for n, t in loaded.encoder.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in saved.items()
    }


@pytest.mark.parametrize("kind", ["clip", "eva"])
def test_the_encoder_stage_trains_a_tower_that_align_takes_on(
    kind: str, clip: Path, eva: Path, parents: Path, tower_stage: MakeConfig, tmp_path: Path
) -> None:
    tower = {"clip": clip, "eva": eva}[kind]
    first = tower_stage("encoder", tower)
    assert (first.model.vision.tower is not None) == (kind == "eva")
    setup = build_setup(first)
    start = {name: t.clone() for name, t in setup.modules["encoder"].state_dict().items()}
    train_stage(first)
    trained = read_component(first.out, "encoder")
    assert set(trained) == set(start)
    assert sum(not torch.equal(trained[name], start[name]) for name in start) > len(start) / 2
    second = tower_stage("align", tower)
    start_from = {"init_from": {"decoder": parents / "text", "encoder": first.out}}
    second = TrainConfig.model_validate({**second.model_dump(), **start_from})
    train_stage(second)
    network = vlm.load(second.out, device="cpu", dtype="float32").network
    batch = next(build_setup(second).train.batches()).inputs.images
    assert batch is not None
    encoder = build_setup(second).modules["encoder"].eval()
    inputs = batch.pixels, batch.num_tiles, batch.aspect_ratio_ids
    with torch.no_grad():
        assert torch.equal(network.encoder(*inputs), encoder(*inputs))


def test_the_encoder_stage_goes_on_from_an_encoder_of_ours(
    stage_config: MakeConfig, parents: Path, tmp_path: Path
) -> None:
    start = {"tokenizer": parents / "text", "encoder": parents / "encoder"}
    config = stage_config("encoder", tmp_path / "out", init_from=start)
    encoder = build_setup(config).modules["encoder"].state_dict()
    parent = read_component(parents / "encoder", "encoder")
    assert all(torch.equal(encoder[name], tensor) for name, tensor in parent.items())


def test_a_dry_run_shows_the_towers_report(clip: Path, tower_stage: MakeConfig) -> None:
    assert f"encoder from {clip}: transformers CLIP" in describe_run(tower_stage("align", clip))


def test_a_section_may_be_a_towers_path_with_overrides(clip: Path, tmp_path: Path) -> None:
    decoder = {
        **{"vocab_size": 99, "hidden_size": 16, "intermediate_size": 16, "num_layers": 5},
        **{"num_heads": 2, "num_kv_heads": 2, "max_positions": 64},
    }
    file = tmp_path / "model.yaml"
    file.write_text(yaml.safe_dump({"vision": str(clip), "projector": {}, "decoder": decoder}))
    vision = load_config(VLMConfig, file).vision
    assert (vision.tile_size_px, vision.max_num_tiles, vision.num_global_layers) == (16, 4, 0)
    changed = load_config(VLMConfig, file, ["vision.max_num_tiles=2"]).vision
    assert changed == vision.model_copy(update={"max_num_tiles": 2})
    wrong = {"vision": {"from": str(clip), "tile_size": 3}, "projector": {}, "decoder": decoder}
    file.write_text(yaml.safe_dump(wrong))
    with pytest.raises(UserError, match=r"unknown key vision\.tile_size; did you mean"):
        load_config(VLMConfig, file)


def test_a_tower_of_another_shape_is_refused_by_field(clip: Path, tower_stage: MakeConfig) -> None:
    config = tower_stage("align", clip)
    plain = config.model_dump()
    plain["model"]["vision"]["norm_eps"] = 1e-6
    with pytest.raises(UserError, match=r"model\.vision\.norm_eps is 1e-06 here and 1e-05 there"):
        train_stage(TrainConfig.model_validate(plain))
    assert not config.out.exists()
