"""Which parts a stage trains, and that the others stay as they were, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from training.config import StageName, TrainConfig
from training.run import train_stage
from training.setup import Setup, build_setup, describe_parts
from training.stages import STAGES, Part, freeze, parts_of
from vlm.model import VisionLanguageModel
from vlm.weights.folder import read_component

# Written down a second time on purpose: the table of DESIGN section 5.
TRAINED: dict[StageName, set[Part]] = {
    "text": {"decoder"},
    "encoder": {"encoder", "text tower", "contrastive head"},
    "align": {"projector", "cross-attention"},
    "finetune": {"encoder", "projector", "cross-attention", "decoder"},
}
FROZEN: dict[StageName, set[Part]] = {
    "text": {"cross-attention"},
    "encoder": set(),
    "align": {"encoder", "decoder"},
    "finetune": set(),
}


def components(model: VisionLanguageModel) -> dict[str, torch.nn.Module]:
    return {"encoder": model.encoder, "projector": model.projector, "decoder": model.decoder}


def test_every_parameter_belongs_to_exactly_one_part(tiny_model: VisionLanguageModel) -> None:
    parts = parts_of(components(tiny_model))
    names = [name for part in parts.values() for name in part]
    assert sorted(names) == sorted(name for name, _ in tiny_model.named_parameters())
    assert set(parts) == {"encoder", "projector", "cross-attention", "decoder"}


def test_cross_attention_is_layers_3_and_8_with_their_gates(
    tiny_model: VisionLanguageModel,
) -> None:
    crossing = parts_of(components(tiny_model))["cross-attention"]
    assert {".".join(name.split(".")[:3]) for name in crossing} == {
        "decoder.layers.3",
        "decoder.layers.8",
    }
    assert {name for name in crossing if name.endswith("gate")} == {
        f"decoder.layers.{layer}.{gate}" for layer in (3, 8) for gate in ("attn_gate", "mlp_gate")
    }
    held = [p for layer in (3, 8) for p in tiny_model.decoder.layers[layer].parameters()]
    assert {id(p) for p in crossing.values()} == {id(p) for p in held}


@pytest.mark.parametrize("name", STAGES)
def test_freezing_follows_the_table(name: StageName, tiny_model: VisionLanguageModel) -> None:
    parts = parts_of(components(tiny_model))
    for other in STAGES.values():  # an earlier stage leaves no trace
        freeze(other, parts)
    freeze(STAGES[name], parts)
    for part, parameters in parts.items():
        assert {p.requires_grad for p in parameters.values()} == {part in TRAINED[name]}


@pytest.mark.parametrize("name", STAGES)
def test_a_run_moves_what_its_stage_trains_and_nothing_else(
    name: StageName, stage_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = stage_config(name, tmp_path / name)
    torch.manual_seed(config.seed)
    setup = build_setup(config)  # what the run starts from
    train_stage(config)
    parts = parts_of(setup.modules)
    saved = {
        f"{component}.{key}": tensor
        for component in setup.stage.components
        for key, tensor in read_component(config.out, component).items()
    }
    assert set(parts) == TRAINED[name] | FROZEN[name]
    for part, parameters in parts.items():
        if part == "contrastive head":  # no part of a model folder
            continue
        still = {key for key, before in parameters.items() if before.equal(saved[key])}
        assert still == (set(parameters) if part in FROZEN[name] else set()), part


def test_the_table_is_printed_with_counts(finetune_setup: Setup) -> None:
    lines = describe_parts(finetune_setup).splitlines()
    assert lines[0] == "stage finetune: next token on the assistant's turns"
    shown = {line[:18].strip(): line.split()[-2:] for line in lines[1:]}
    encoder = finetune_setup.modules["encoder"]
    count = sum(parameter.numel() for parameter in encoder.parameters())
    assert shown["encoder"] == [f"{count:,}", "trained"]
    assert set(shown) == TRAINED["finetune"]


def test_the_table_of_align_says_frozen(stage_config: Any, tmp_path: Path) -> None:
    lines = describe_parts(build_setup(stage_config("align", tmp_path / "align"))).splitlines()[1:]
    states = {line[:18].strip(): line.split()[-1] for line in lines}
    assert states == {
        "encoder": "frozen",
        "projector": "trained",
        "cross-attention": "trained",
        "decoder": "frozen",
    }
