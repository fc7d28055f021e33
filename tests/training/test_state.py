"""Checkpoints of a run: what goes in comes out bit-equal, and nothing else is accepted."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data.loader import LoaderState
from training.checkpoints import list_checkpoints
from training.config import OptimConfig
from training.optim import build_optimizer
from training.saver import Saver
from training.sharded import Parts
from training.state import Best, Progress, WholePayload
from vlm.errors import UserError

CONFIG: dict[str, Any] = {
    "steps": 9,
    "optim": {"learning_rate": 0.1, "betas": (0.9, 0.95)},
    "data": {"train": ["a"]},
}
GUARDS = {"skipped": 1, "losses": [0.1, 1e-9]}
POSITION = LoaderState(((5, 2), (1, 0)))


def make_run(seed: int, kind: str = "adamw", width: int = 4) -> WholePayload:
    torch.manual_seed(seed)
    modules = {
        "encoder": nn.Linear(3, width),
        "decoder": nn.Sequential(nn.Linear(width, 2), nn.Tanh()),
    }
    settings = {"kind": kind, "learning_rate": 0.1, "warmup_steps": 1}
    optimizer = build_optimizer(modules.values(), OptimConfig.model_validate(settings))
    return WholePayload(modules, optimizer, {"decoder.0.bias": torch.randn(2)})


def train(run: WholePayload, steps: int) -> None:
    for _ in range(steps):
        loss = run.modules["decoder"](run.modules["encoder"](torch.randn(5, 3))).square().sum()
        run.optimizer.zero_grad()
        loss.backward()
        run.optimizer.step()


def saver(folder: Path, run: Any, config: dict[str, Any] = CONFIG, keep: int = 2) -> Saver:
    return Saver(folder, run, config, keep)


def save(folder: Path, step: int, run: WholePayload) -> Progress:
    progress = Progress(step, POSITION, 4.5, Best(2, "validation/loss", 0.5), GUARDS)
    writer = saver(folder, run)
    assert writer.save(progress) == folder / f"step-{step:08d}"
    writer.wait()
    return progress


def weights(run: WholePayload) -> list[torch.Tensor]:
    return [tensor for module in run.modules.values() for tensor in module.state_dict().values()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(a.equal(b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_restored_run_continues_bit_for_bit(tmp_path: Path, kind: str) -> None:
    run = make_run(0, kind)
    train(run, 3)
    progress = save(tmp_path, 3, run)
    average = run.averages["decoder.0.bias"].clone()
    saved = [tensor.clone() for tensor in weights(run)]
    train(run, 3)
    assert not any(a.equal(b) for a, b in zip(weights(run), saved, strict=True))

    other = make_run(1, kind)
    assert saver(tmp_path, other).resume(print) == progress
    assert other.averages["decoder.0.bias"].equal(average)
    train(other, 3)  # its random inputs come from the restored stream
    assert equal(weights(run), weights(other))
    states, others_states = (r.optimizer.state_dict()["state"] for r in (run, other))
    assert set(states) == set(others_states) == {0, 1, 2, 3}
    for index, state in states.items():
        assert set(state) in ({"step", "exp_avg", "exp_avg_sq"}, {"step", "momentum"})
        assert set(state) == set(others_states[index])
        assert all(tensor.equal(others_states[index][name]) for name, tensor in state.items())


def test_a_checkpoint_before_the_first_step_restores_too(tmp_path: Path) -> None:
    run, other = make_run(0), make_run(1)
    save(tmp_path, 0, run)
    assert saver(tmp_path, other).resume(print) is not None
    assert equal(weights(run), weights(other))
    assert not other.optimizer.state


def test_weights_alone_leave_the_optimizer_and_the_random_stream(tmp_path: Path) -> None:
    run, other = make_run(0), make_run(1)
    train(run, 1)
    save(tmp_path, 1, run)
    before = torch.get_rng_state()
    other.restore_weights(tmp_path / "step-00000001")
    assert equal(weights(run), weights(other))
    assert not other.optimizer.state and torch.get_rng_state().equal(before)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert saver(tmp_path / "nowhere", make_run(0)).resume(print) is None


@dataclass
class Held:
    """A payload whose writing waits until it is let go."""

    run: WholePayload
    go: threading.Event

    def snapshot(self) -> "HeldSnapshot":
        return HeldSnapshot(self.run.snapshot(), self.go)


@dataclass
class HeldSnapshot:
    tensors: Parts
    go: threading.Event

    @property
    def num_bytes(self) -> int:
        return self.tensors.num_bytes

    def write(self, folder: Path) -> list[str]:
        assert self.go.wait(30)
        return self.tensors.write(folder)


def test_training_goes_on_while_a_checkpoint_of_the_step_before_is_written(tmp_path: Path) -> None:
    run, go = make_run(0), threading.Event()
    train(run, 1)
    saved = [tensor.clone() for tensor in weights(run)]
    writer = saver(tmp_path, Held(run, go))
    writer.save(Progress(1, POSITION, 1.0, None, GUARDS))
    train(run, 3)
    assert list_checkpoints(tmp_path) == []
    go.set()
    writer.save(Progress(4, POSITION, 4.0, None, GUARDS))  # waits for the one before it
    assert [path.name for path in list_checkpoints(tmp_path)][:1] == ["step-00000001"]
    writer.wait()
    other = make_run(1)
    other.restore(tmp_path / "step-00000001")
    assert equal(weights(other), saved)
    other.restore(tmp_path / "step-00000004")
    assert equal(weights(other), weights(run))


@dataclass
class Failing:
    """A payload whose file cannot be written, as on a broken disk."""

    run: WholePayload

    def snapshot(self) -> Any:
        return self

    num_bytes = 12345

    def write(self, folder: Path) -> list[str]:
        (folder / "part.safetensors").write_bytes(b"half")
        raise OSError(5, "Input/output error")


def test_a_failed_save_is_told_with_path_and_bytes_and_leaves_the_last_one(tmp_path: Path) -> None:
    run = make_run(0)
    save(tmp_path, 1, run)
    writer = saver(tmp_path, Failing(run))
    writer.last = tmp_path / "step-00000001"
    writer.save(Progress(2, POSITION, 1.0, None, GUARDS))
    with pytest.raises(UserError) as caught:
        writer.wait()
    message = str(caught.value)
    assert f"checkpoint {tmp_path / 'step-00000002'} needs 12,345 bytes" in message
    assert "Input/output error" in message
    assert message.endswith(f"the last one is {tmp_path / 'step-00000001'}")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    writer.wait()  # it is told once


def changed_config() -> dict[str, Any]:
    changed = json.loads(json.dumps(CONFIG))
    changed["optim"]["learning_rate"] = 0.2
    changed["seed"] = 1
    del changed["steps"]
    return changed


def test_changed_settings_are_named_by_dotted_path_with_both_values(tmp_path: Path) -> None:
    save(tmp_path, 5, make_run(0))
    with pytest.raises(UserError) as caught:
        saver(tmp_path, make_run(0), changed_config()).resume(print)
    message = str(caught.value)
    assert "optim.learning_rate was 0.1, is 0.2" in message
    assert "seed was None, is 1" in message and "steps was 9, is None" in message
    assert "betas" not in message and "data" not in message and "--force" in message


def test_force_goes_on_under_changed_settings_and_says_which(tmp_path: Path) -> None:
    run, other, said = make_run(0), make_run(1), list[str]()
    save(tmp_path, 5, run)
    progress = saver(tmp_path, other, changed_config()).resume(said.append, force=True)
    assert progress is not None and progress.step == 5
    assert equal(weights(run), weights(other))
    assert len(said) == 3 and any("optim.learning_rate was 0.1, is 0.2" in line for line in said)


def break_shape(run: WholePayload) -> WholePayload:
    return make_run(1, width=5)


def break_names(run: WholePayload) -> WholePayload:
    return WholePayload({"encoder": run.modules["encoder"]}, run.optimizer, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (break_shape, r"model\.encoder\.weight is \[4, 3\], needed: \[5, 3\]"),
        (break_names, r"model\.decoder\.0\.weight has no place in the model"),
    ],
)
def test_tensors_that_do_not_fit_are_named_and_nothing_is_taken(
    change: Callable[[WholePayload], WholePayload], message: str, tmp_path: Path
) -> None:
    save(tmp_path, 5, make_run(0))
    run = change(make_run(1))
    before = [tensor.clone() for tensor in weights(run)]
    with pytest.raises(UserError, match=message):
        saver(tmp_path, run).resume(print)
    assert equal(weights(run), before)
