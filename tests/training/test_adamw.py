"""Moments in fewer bytes: the same updates but for their rounding, and a state that can be kept."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training import adamw
from training.adamw import round_at_random
from training.config import OptimConfig, TrainConfig
from training.optim import build_optimizer
from training.run import train_stage
from vlm.errors import UserError
from vlm.weights.folder import read_component

KINDS: Any = ("bf16", "8bit")


def make_config(**settings: Any) -> OptimConfig:
    plain = {"learning_rate": 1e-2, "warmup_steps": 1, "betas": (0.9, 0.99), **settings}
    return OptimConfig.model_validate(plain)


def make_module() -> nn.Sequential:
    """8,192 weights in blocks of 256, and 3 x 33 that are too few for blocks."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 64), nn.Linear(33, 3))


def give_gradients(module: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.grad = 0.1 * (0.5 + noise)


def train(state: str, steps: int = 20) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    module = make_module()
    optimizer = build_optimizer([module], make_config(state=state))
    for step in range(steps):
        give_gradients(module, step)
        optimizer.step()
    return module, optimizer


def apart(one: Tensor, other: Tensor, start: Tensor) -> float:
    """How far two ends are apart, as a share of the way."""
    return ((one - other).norm() / (other - start).norm()).item()


@pytest.mark.parametrize(("kind", "allowed"), [("bf16", 0.01), ("8bit", 0.03)])
def test_weights_end_where_adamws_end(kind: str, allowed: float) -> None:
    start, (exact, _), (found, _) = make_module(), train("fp32"), train(kind)
    # Moments are rounded by up to 2^-8 and about 1 % of a block's largest, anew in each step.
    distance = apart(found[0].weight, exact[0].weight, start[0].weight)
    assert 1e-5 < distance < allowed


def test_few_weights_keep_float32_moments_and_the_steps_of_torch() -> None:
    (exact, _), (found, optimizer) = train("fp32"), train("8bit")
    for name in ("weight", "bias"):
        parameter = found[1].get_parameter(name)
        # The same operations; fused they round less often.
        torch.testing.assert_close(parameter, exact[1].get_parameter(name), rtol=0, atol=1e-6)
        assert optimizer.state[parameter]["exp_avg"].dtype == torch.float32


@pytest.mark.parametrize(("kind", "bytes_a_weight"), [("bf16", 4), ("8bit", 2 * (1 + 4 / 256))])
def test_moments_take_the_bytes_promised(kind: str, bytes_a_weight: float) -> None:
    module, optimizer = train(kind, steps=1)
    state = optimizer.state[module[0].weight]
    moments = [tensor for name, tensor in state.items() if name != "step"]
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in moments)
    assert num_bytes == bytes_a_weight * module[0].weight.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_in_pieces_is_updated_as_a_whole(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = train(kind, steps=3)
    monkeypatch.setattr(adamw, "PIECE", 1024)
    pieces, _ = train(kind, steps=3)
    if kind == "8bit":
        assert torch.equal(pieces[0].weight, whole[0].weight)
    else:  # other dice
        assert apart(pieces[0].weight, whole[0].weight, make_module()[0].weight) < 0.01


def test_rounding_at_random_is_right_on_average_and_exact_where_nothing_is_lost() -> None:
    torch.manual_seed(0)
    value = 1 + 2**-7 * 0.3  # three tenths of the way from 1 to the next bf16
    rounded = round_at_random(torch.full((20_000,), value)).float()
    assert set(rounded.tolist()) == {1.0, 1 + 2**-7}
    share = (rounded > 1).float().mean().item()
    assert abs(share - 0.3) < 0.02  # six standard deviations
    exact = torch.tensor([0.0, -1.5, 2.0**-126, -3.0e38]).bfloat16()
    assert torch.equal(round_at_random(exact.float()), exact)


def test_a_second_moment_decays_though_a_step_is_less_than_half_of_a_place() -> None:
    parameter = nn.Parameter(torch.zeros(4096))
    config = make_config(state="bf16", betas=(0.9, 0.999))
    (optimizer,) = (build_optimizer([nn.ParameterList([parameter])], config),)
    parameter.grad = torch.ones(4096)
    optimizer.step()
    before = optimizer.state[parameter]["exp_avg_sq"].float().mean().item()
    for _ in range(200):
        parameter.grad = torch.zeros(4096)
        optimizer.step()
    after = optimizer.state[parameter]["exp_avg_sq"].float().mean().item()
    # To the nearest, 0.999 of a bf16 is that bf16 again.
    assert after == pytest.approx(before * 0.999**200, rel=0.01)


def test_eight_bits_keep_a_value_to_a_share_of_its_own_size() -> None:
    """Half a step is 7 % of a tenth of the block's largest, and 14 % of a hundredth."""
    parameter = nn.Parameter(torch.zeros(4096))
    optimizer = build_optimizer([nn.ParameterList([parameter])], make_config(state="8bit"))
    generator = torch.Generator().manual_seed(0)
    sizes = 10 ** (-2 * torch.rand(4096, generator=generator))
    sizes[::256] = 1.0
    parameter.grad = sizes * torch.where(torch.rand(4096, generator=generator) < 0.5, -1.0, 1.0)
    optimizer.step()
    state = optimizer.state[parameter]
    moment = adamw._read(state, "exp_avg")
    exact = (1 - 0.9) * parameter.grad
    assert ((moment - exact).abs() <= 0.145 * exact.abs()).all()
    assert not torch.equal(moment, exact) and state["exp_avg"].unique().numel() > 100


@pytest.mark.parametrize(("name", "least"), [("exp_avg", -0.993), ("exp_avg_sq", 0.0)])
def test_the_steps_are_256_and_closer_towards_zero(name: str, least: float) -> None:
    steps = adamw._steps(name)
    assert len(steps.unique()) == 256 and (steps == 0).any() and steps.max() == 1
    assert steps.min().item() == pytest.approx(least, abs=1e-3)
    positive = steps[steps > 0]
    gaps = positive.diff()
    assert gaps[positive[1:] < 1e-3].max() < gaps[positive[1:] > 0.1].min()


def test_sharded_parameters_are_refused_in_8_bits(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        module = make_module()
        torch.distributed.fsdp.fully_shard(module, mesh=mesh)
        with pytest.raises(UserError, match=r"blocks cannot be sharded; set optim\.state=bf16"):
            build_optimizer([module], make_config(state="8bit"))
        optimizer = build_optimizer([module], make_config(state="bf16"))
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        plain = make_module()
        other = build_optimizer([plain], make_config(state="bf16"))
        for parameter in plain.parameters():
            parameter.grad = torch.ones_like(parameter)
        other.step()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.full_tensor(), plain.get_parameter(name))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_optimizer_goes_on_to_the_bit(kind: str) -> None:
    module, optimizer = train(kind, steps=3)
    other = make_module()
    other.load_state_dict(module.state_dict())
    restored = build_optimizer([other], make_config(state=kind))
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its in ((module, optimizer), (other, restored)):
        torch.manual_seed(5)
        for step in range(3, 6):
            give_gradients(one, step)
            its.step()
    assert all(map(torch.equal, module.state_dict().values(), other.state_dict().values()))
    kept, found = (o.state[m[0].weight] for o, m in ((optimizer, module), (restored, other)))
    assert kept.keys() == found.keys()
    assert all(kept[n].dtype == found[n].dtype and torch.equal(kept[n], found[n]) for n in kept)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_learns_with_small_moments(
    kind: str, stage_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    figures = []
    for state in ("fp32", kind):
        optim = {"state": state, "learning_rate": 1e-2, "warmup_steps": 2}
        result = train_stage(stage_config("finetune", tmp_path / state, optim=optim, steps=6))
        figures.append(result.figures["loss"])
        assert read_component(tmp_path / state, "decoder")
    assert figures[1] == pytest.approx(figures[0], rel=0.02)


def test_muon_keeps_fp32() -> None:
    with pytest.raises(ValueError, match="state '8bit' is for kind 'adamw'"):
        make_config(kind="muon", state="8bit")
