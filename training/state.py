"""What a checkpoint holds: tensors of modules and of the optimizer, random states, the progress.

A payload copies its tensors to the host while the loop waits, and writes them while it goes on.
Each rank writes the parts that it holds into a file of its own (training/sharded.py), all into the
same folder (training/checkpoints.py).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from data.loader import LoaderState
from training.distributed import rank
from training.lora import changing_tensors
from training.sharded import Parts, StoredParts
from vlm.errors import UserError
from vlm.weights.comparison import differences, listed, mismatches
from vlm.weights.folder import write_json

STATE_FILE = "state.json"


@dataclass(frozen=True)
class Best:
    """The step whose figure was the best so far."""

    step: int
    figure: str
    value: float


@dataclass(frozen=True)
class Progress:
    """Where a run stands, apart from its tensors.

    seconds: time spent in training so far.
    guards: what training/guards.py remembers of the steps so far.
    """

    step: int
    loader: LoaderState
    seconds: float
    best: Best | None
    guards: Mapping[str, Any]


class Snapshot(Protocol):
    """Tensors as they were at a step, on the host; writing them takes no part in training."""

    @property
    def num_bytes(self) -> int:
        """What this rank will write."""
        ...

    def write(self, folder: Path) -> list[str]:
        """Write this rank's files into a folder; return their names."""
        ...


class Payload(Protocol):
    """The tensors of a run that a checkpoint must hold."""

    def snapshot(self) -> Snapshot:
        """Copy them to the host."""
        ...

    def restore(self, folder: Path) -> None:
        """Take them from a verified checkpoint.

        Raises:
            UserError: a tensor is missing, left over, or of another shape.
        """
        ...

    def restore_weights(self, folder: Path) -> None:
        """Take the weights and their averages only."""
        ...


@dataclass(frozen=True)
class WholePayload:
    """Everything of a run, restored on any number of ranks, however they share it.

    Args:
        modules: everything with parameters, frozen or not, by name. The base of adapters is not
            written.
        averages: of weights, named as in `training.ema`; empty without any.
    """

    modules: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer
    averages: Mapping[str, Tensor]

    def snapshot(self) -> Parts:
        """Copy this rank's parts of weights, averages, optimizer and random states to the host."""
        return Parts.copy_of(
            shared={**self._places(), **_optimizer_tensors(self.optimizer)}, own=random_tensors()
        )

    def restore(self, folder: Path) -> None:
        """Take all of that from a verified checkpoint.

        Raises:
            UserError: a weight is missing, left over, or of another shape.
        """
        stored = StoredParts(folder)
        self._take_weights(folder, stored)
        _restore_optimizer(self.optimizer, stored)
        restore_random(stored)

    def restore_weights(self, folder: Path) -> None:
        """Take the weights and their averages only."""
        self._take_weights(folder, StoredParts(folder))

    @torch.no_grad()
    def _take_weights(self, folder: Path, stored: StoredParts) -> None:
        shapes = {n: s for n, s in stored.shapes.items() if n.startswith(("model.", "ema."))}
        places = self._places()
        problems = mismatches({n: tuple(place.shape) for n, place in places.items()}, shapes)
        if problems:
            raise UserError(f"checkpoint {folder} does not match the model: {listed(problems)}")
        for name, place in places.items():
            place.copy_(stored.read(name, place))

    def _places(self) -> dict[str, Tensor]:
        weights = {
            f"model.{component}.{name}": tensor
            for component, tensors in changing_tensors(self.modules).items()
            for name, tensor in tensors.items()
        }
        return weights | {f"ema.{name}": tensor for name, tensor in self.averages.items()}


def write_state(folder: Path, progress: Progress, config: Mapping[str, Any]) -> list[str]:
    """Write what is no tensor; return the name of its file."""
    write_json(folder / STATE_FILE, {"progress": asdict(progress), "config": dict(config)})
    return [STATE_FILE]


def read_state(folder: Path) -> tuple[Progress, dict[str, Any]]:
    """Read progress and configuration of a verified checkpoint."""
    content = json.loads((folder / STATE_FILE).read_text())
    progress = content["progress"]
    best = None if progress["best"] is None else Best(**progress["best"])
    position = LoaderState.parse(progress["loader"])
    return Progress(**{**progress, "loader": position, "best": best}), content["config"]


def config_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say field by field what differs between a checkpoint's configuration and the present one."""
    # Tuples are lists in a file.
    return [
        f"{path} was {was!r}, is {value!r}"
        for path, was, value in differences(then, json.loads(json.dumps(now)))
    ]


def random_tensors() -> dict[str, Tensor]:
    """The states of this rank's torch generators; the loop draws from no others that live on."""
    states = {f"random.{rank()}.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"random.{rank()}.cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random(stored: StoredParts) -> None:
    """Put the states of `random_tensors` back; a rank that was not there then keeps its own."""
    cpu, cuda = f"random.{rank()}.cpu", f"random.{rank()}.cuda"
    if cpu in stored.shapes:
        torch.set_rng_state(stored.read(cpu))
    if torch.cuda.is_available() and cuda in stored.shapes:
        torch.cuda.set_rng_state(stored.read(cuda))


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"optimizer.{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, stored: StoredParts) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, shape in stored.shapes.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            parameter = parameters[int(index)]
            like = parameter if shape == parameter.shape else None
            state.setdefault(int(index), {})[name] = stored.read(key, like)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
