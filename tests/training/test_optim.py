"""Schedules against values computed by hand, and what decays."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from training.config import OptimConfig
from training.optim import build_optimizer, learning_rate
from training.stages import parts_of
from vlm.errors import UserError
from vlm.model import VisionLanguageModel


def make_config(**settings: Any) -> OptimConfig:
    return OptimConfig.model_validate({"learning_rate": 0.8, "warmup_steps": 4, **settings})


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        # Warm-up: 1/4, 2/4, 3/4, 4/4 of the peak in steps 0 to 3, whatever follows.
        ("inverse_sqrt", {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8, 8: 0.8 * 2 / 3, 15: 0.4, 99: 0.16}),
        ("cosine", {0: 0.2, 3: 0.8, 4: 0.8, 28: 0.4, 20: 0.6, 36: 0.2, 52: 0.0}),
        ("warmup_stable_decay", {0: 0.2, 3: 0.8, 4: 0.8, 42: 0.8, 47: 0.4, 51: 0.08, 52: 0.0}),
    ],
)
def test_rates_equal_those_computed_by_hand(schedule: Any, rates: dict[int, float]) -> None:
    decay = 10 if schedule == "warmup_stable_decay" else None
    config = make_config(schedule=schedule, decay_steps=decay)
    found = {step: learning_rate(config, step, steps=52) for step in rates}
    assert found == pytest.approx(rates, abs=1e-12)


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "cosine", "warmup_stable_decay"])
def test_rates_rise_to_the_peak_once_and_then_never_rise(schedule: Any) -> None:
    decay = 10 if schedule == "warmup_stable_decay" else None
    config = make_config(schedule=schedule, decay_steps=decay)
    rates = [learning_rate(config, step, 52) for step in range(52)]
    assert rates[:4] == sorted(set(rates[:4])) and rates[3] == max(rates) == 0.8
    assert rates[3:] == sorted(rates[3:], reverse=True) and rates[-1] > 0


def test_decay_shrinks_matrices_and_leaves_vectors_alone() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Conv2d(2, 2, 1))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = build_optimizer([module], make_config(weight_decay=0.5))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in module.named_parameters():
        factor = 1 - 0.8 * 0.5 if parameter.dim() >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_gates_do_not_decay(tiny_model: nn.Module) -> None:
    groups = build_optimizer([tiny_model], make_config()).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.0]
    undecayed = {id(parameter) for group in groups[1:] for parameter in group["params"]}
    named = dict(tiny_model.named_parameters())
    assert {n for n, p in named.items() if id(p) in undecayed} == {
        name for name, parameter in named.items() if parameter.dim() < 2
    }
    gates = [name for name in named if name.endswith("gate")]
    assert len(gates) >= 4 and all(id(named[name]) in undecayed for name in gates)


def test_gates_and_nothing_else_learn_at_their_own_rate(tiny_model: nn.Module) -> None:
    groups = build_optimizer([tiny_model], make_config(gate_rate_factor=5)).param_groups
    assert [group["rate_factor"] for group in groups] == [1.0, 1.0, 5.0]
    names = {"gate", "attn_gate", "mlp_gate", "gate_attn", "gate_ffn"}
    named = tiny_model.named_parameters()
    gates = {id(p) for name, p in named if name.rpartition(".")[2] in names}
    assert {id(parameter) for parameter in groups[2]["params"]} == gates


def test_frozen_parameters_are_no_business_of_the_optimizer() -> None:
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    groups = build_optimizer([module], make_config()).param_groups
    assert [len(group["params"]) for group in groups] == [1, 0, 0]


def test_defaults_are_those_of_the_design() -> None:
    optimizer = build_optimizer([nn.Linear(3, 2)], make_config())
    assert optimizer.defaults["betas"] == (0.9, 0.95) and optimizer.defaults["eps"] == 1e-8
    assert make_config().clip_norm == 1.0 and make_config().weight_decay == 0.1


@pytest.mark.parametrize(
    ("schedule", "decay_steps"), [("warmup_stable_decay", None), ("cosine", 5)]
)
def test_decay_steps_belong_to_one_schedule(schedule: str, decay_steps: int | None) -> None:
    with pytest.raises(ValueError, match="decay_steps belongs to schedule warmup_stable_decay"):
        make_config(schedule=schedule, decay_steps=decay_steps)


def test_inverse_square_root_falls_by_half_in_four_times_the_steps() -> None:
    config = make_config()
    assert math.isclose(learning_rate(config, 15, 99), 2 * learning_rate(config, 63, 99))


def test_parts_learn_and_decay_at_their_own_rates_and_the_rest_at_the_common_one(
    tiny_model: VisionLanguageModel,
) -> None:
    names = ("encoder", "projector", "decoder")
    parts = parts_of({name: getattr(tiny_model, name) for name in names})
    own = {
        "encoder": {"learning_rate": 0.08},
        "cross_attention": {"learning_rate": 1.6, "weight_decay": 0.3},
    }
    config = make_config(parts=own, gate_rate_factor=5)
    optimizer = build_optimizer([getattr(tiny_model, name) for name in names], config, parts)
    settings = {
        parameter: (group["rate_factor"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    factors = {"encoder": 0.1, "cross-attention": 2.0, "projector": 1.0, "decoder": 1.0}
    decays = {"cross-attention": 0.3}
    count = 0
    for part, parameters in parts.items():
        for parameter in parameters.values():
            gate = 5 if parameter.shape == (1,) else 1
            decay = decays.get(part, 0.1) if parameter.dim() >= 2 else 0.0
            assert settings[parameter] == (pytest.approx(factors[part] * gate), decay)
            count += 1
    assert count == len(settings) == len(list(tiny_model.parameters()))


def test_settings_of_a_frozen_part_are_refused(tiny_model: VisionLanguageModel) -> None:
    tiny_model.encoder.requires_grad_(False)
    parts = parts_of({"encoder": tiny_model.encoder, "projector": tiny_model.projector})
    config = make_config(parts={"encoder": {"learning_rate": 0.1}})
    with pytest.raises(UserError, match=r"optim\.parts\.encoder is set, and nothing of that part"):
        build_optimizer([tiny_model.encoder, tiny_model.projector], config, parts)
