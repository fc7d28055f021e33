"""Checkpoints: what goes in comes out bit-equal, and nothing else is accepted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from data.loader import LoaderState
from training.config import OptimConfig
from training.optim import build_optimizer
from training.state import Progress, list_checkpoints, load_checkpoint, save_checkpoint
from vlm.errors import UserError

CONFIG: dict[str, Any] = {
    "steps": 9,
    "optim": {"learning_rate": 0.1, "betas": [0.9, 0.95]},
    "data": {"train": ["a"]},
}


def make_run(seed: int, kind: str = "adamw") -> tuple[dict[str, nn.Module], torch.optim.Optimizer]:
    torch.manual_seed(seed)
    modules = {"encoder": nn.Linear(3, 4), "decoder": nn.Sequential(nn.Linear(4, 2), nn.Tanh())}
    settings = {"kind": kind, "learning_rate": 0.1, "warmup_steps": 1}
    return modules, build_optimizer(modules.values(), OptimConfig.model_validate(settings))


def train(modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        loss = modules["decoder"](modules["encoder"](torch.randn(5, 3))).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def save(folder: Path, step: int, run: Any = None, keep: int = 2) -> Path:
    modules, optimizer = run or make_run(0)
    progress = Progress(step, LoaderState(((1, 2), (3, 0))), 4.5)
    return save_checkpoint(folder, progress, modules, optimizer, CONFIG, keep)


def weights(modules: dict[str, nn.Module]) -> list[torch.Tensor]:
    return [tensor for module in modules.values() for tensor in module.state_dict().values()]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_restored_run_continues_bit_for_bit(tmp_path: Path, kind: str) -> None:
    modules, optimizer = make_run(0, kind)
    train(modules, optimizer, 3)
    path = save(tmp_path, 3, (modules, optimizer))
    saved = [tensor.clone() for tensor in weights(modules)]
    train(modules, optimizer, 3)
    assert not any(a.equal(b) for a, b in zip(weights(modules), saved, strict=True))

    others, other_optimizer = make_run(1, kind)
    progress = load_checkpoint(path, others, other_optimizer, CONFIG)
    assert progress == Progress(3, LoaderState(((1, 2), (3, 0))), 4.5)
    train(others, other_optimizer, 3)  # its random inputs come from the restored stream
    assert all(a.equal(b) for a, b in zip(weights(modules), weights(others), strict=True))
    states, others_states = (o.state_dict()["state"] for o in (optimizer, other_optimizer))
    assert set(states) == set(others_states) == {0, 1, 2, 3}
    for index, state in states.items():
        assert set(state) in ({"step", "exp_avg", "exp_avg_sq"}, {"step", "momentum"})
        assert set(state) == set(others_states[index])
        assert all(tensor.equal(others_states[index][name]) for name, tensor in state.items())


def test_a_checkpoint_before_the_first_step_restores_too(tmp_path: Path) -> None:
    modules, optimizer = make_run(0)
    path = save(tmp_path, 0, (modules, optimizer))
    others, other_optimizer = make_run(1)
    load_checkpoint(path, others, other_optimizer, CONFIG)
    assert all(a.equal(b) for a, b in zip(weights(modules), weights(others), strict=True))
    assert not other_optimizer.state


def test_only_the_newest_are_kept_in_the_order_of_steps(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == []
    for step in (5, 10, 200):
        save(tmp_path, step, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000010", "step-00000200"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000200"]


def test_the_same_step_again_replaces_the_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 5, make_run(0))
    path = save(tmp_path, 5, make_run(1))
    expected, _ = make_run(1)
    restored, optimizer = make_run(2)
    load_checkpoint(path, restored, optimizer, CONFIG)
    assert all(a.equal(b) for a, b in zip(weights(expected), weights(restored), strict=True))


def test_a_half_written_checkpoint_is_none(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    path.rename(tmp_path / ".step-00000006.123.writing")
    assert list_checkpoints(tmp_path) == []


@pytest.mark.parametrize("damage", ["truncate", "no tensors", "no state", "no json"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    path = save(tmp_path, 5)
    tensors, state = path / "tensors.safetensors", path / "state.json"
    if damage == "truncate":
        tensors.write_bytes(tensors.read_bytes()[:-10])
    elif damage == "no json":
        state.write_text("{")
    else:
        (tensors if damage == "no tensors" else state).unlink()
    with pytest.raises(UserError, match=r"checkpoint .*step-00000005 cannot be read"):
        load_checkpoint(path, *make_run(0), CONFIG)


def test_changed_settings_are_named_by_dotted_path_with_both_values(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    changed = json.loads(json.dumps(CONFIG))
    changed["optim"]["learning_rate"] = 0.2
    changed["seed"] = 1
    del changed["steps"]
    with pytest.raises(UserError) as caught:
        load_checkpoint(path, *make_run(0), changed)
    message = str(caught.value)
    assert "optim.learning_rate was 0.1, is 0.2" in message
    assert "seed was None, is 1" in message and "steps was 9, is None" in message
    assert "betas" not in message and "data" not in message
