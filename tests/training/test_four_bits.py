"""QLoRA: the decoder's layers in 4 bits under adapters that learn."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import vlm
from training.config import TrainConfig
from training.four_bits import hold_in_four_bits
from training.run import train_stage
from training.setup import build_setup
from vlm.adapters.folder import WEIGHTS_FILE
from vlm.errors import UserError

MakeConfig = Callable[..., TrainConfig]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LORA: dict[str, Any] = {
    "decoder": {"rank": 2, "alpha": 4},
    "cross_attention": {"rank": 2, "alpha": 4},
    "encoder": {"rank": 1, "alpha": 1},
    "base_weights": "nf4",
}


@pytest.mark.parametrize("device", DEVICES)
def test_a_layer_in_four_bits_computes_nearly_the_same_in_an_eighth_of_the_memory(
    device: str,
) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(256, 128, bias=True)).requires_grad_(False)
    inputs = torch.randn(16, 256)
    expected = layer(inputs)
    bias = layer[0].bias.clone()
    hold_in_four_bits(layer)
    layer.to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        found = layer(inputs.to(device)).float().cpu()
    # NF4 leaves about a tenth of the deviation of normal weights as error.
    error = (found - expected).norm() / (expected - bias).norm()
    assert 0.01 < error < 0.15
    assert layer[0].weight.dtype == torch.uint8 and layer[0].weight.numel() == 256 * 128 // 2
    assert layer[0].bias.cpu().equal(bias.bfloat16())


@pytest.mark.parametrize("device", DEVICES)
def test_adapters_learn_on_a_base_in_four_bits(
    device: str, stage_config: MakeConfig, tmp_path: Path, picture: Callable[..., Any]
) -> None:
    out = tmp_path / "out"
    changes: dict[str, Any] = {"lora": LORA, "precision": "bf16", "device": device, "steps": 4}
    train_stage(stage_config("finetune", out, checkpoint_every=2, **changes))
    saved = load_file(out / WEIGHTS_FILE)
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    assert all(tensor.any() for name, tensor in saved.items() if "lora_B" in name)
    again = tmp_path / "again"
    (out / "checkpoints").rename(again.with_suffix(".checkpoints"))
    again.mkdir()
    again.with_suffix(".checkpoints").rename(again / "checkpoints")
    train_stage(stage_config("finetune", again, checkpoint_every=2, **changes), resume=True)
    resumed = load_file(again / WEIGHTS_FILE)
    assert all(tensor.equal(resumed[name]) for name, tensor in saved.items())
    # Asked on the exact weights.
    answer = vlm.load(out, device="cpu").ask(picture(0, 24, 24), "How many?", max_tokens=4)
    assert isinstance(answer, str)


def test_only_the_linear_layers_of_the_decoders_blocks_are_in_four_bits(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    config = stage_config("finetune", tmp_path, lora=LORA, precision="bf16")
    decoder = build_setup(config).modules["decoder"].to("cpu")
    small = {name for name, p in decoder.named_parameters() if p.dtype == torch.uint8}
    kinds = {".".join(name.split(".")[2:4]) for name in small}
    assert len(small) == 9 * 7 and all(name.endswith("base_layer.weight") for name in small)
    assert kinds == {
        *(f"{block}.{x}_proj" for block in ("self_attn", "cross_attn") for x in "qkvo"),
        *(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
    }


def test_without_bitsandbytes_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(UserError, match=r"needs bitsandbytes, .*: pip install 'vlm\[quant\]', or"):
        hold_in_four_bits(nn.Sequential(nn.Linear(2, 2)))
