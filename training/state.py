"""What a checkpoint holds: tensors of modules and of the optimizer, random states, the progress.

A payload copies its tensors to the host while the loop waits, and writes them while it goes on.
`WholePayload` is that of a process that has all weights; where ranks have parts of them, each
writes files of its own into the same folder (training/checkpoints.py).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.loader import LoaderState
from training.lora import changing_tensors
from vlm.errors import UserError
from vlm.weights.comparison import differences, listed, mismatches
from vlm.weights.folder import write_json

TENSORS_FILE = "tensors.safetensors"
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
class HostTensors:
    """Named tensors on the host, and the file that they go to."""

    name: str
    tensors: Mapping[str, Tensor]

    @staticmethod
    def copy_of(name: str, tensors: Mapping[str, Tensor]) -> "HostTensors":
        """Copy tensors, wherever they lie; the originals may change then."""
        host = {
            key: tensor.detach().to("cpu", copy=True).contiguous()
            for key, tensor in tensors.items()
        }
        return HostTensors(name, host)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def write(self, folder: Path) -> list[str]:
        """Write the file."""
        save_file(dict(self.tensors), folder / self.name)
        return [self.name]


@dataclass(frozen=True)
class WholePayload:
    """Everything of a run in one process, in one file.

    Args:
        modules: everything with parameters, frozen or not, by name. The base of adapters is not
            written.
        averages: of weights, named as in `training.ema`; empty without any.
    """

    modules: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer
    averages: Mapping[str, Tensor]

    def snapshot(self) -> HostTensors:
        """Copy weights, averages, optimizer and random states to the host."""
        tensors = {**self._places(), **_optimizer_tensors(self.optimizer), **random_tensors()}
        return HostTensors.copy_of(TENSORS_FILE, tensors)

    def restore(self, folder: Path) -> None:
        """Take all of that from a verified checkpoint.

        Raises:
            UserError: a weight is missing, left over, or of another shape.
        """
        tensors = read_tensors(folder / TENSORS_FILE)
        self._take_weights(folder, tensors)
        _restore_optimizer(self.optimizer, tensors)
        restore_random(tensors)

    def restore_weights(self, folder: Path) -> None:
        """Take the weights and their averages only."""
        self._take_weights(folder, read_tensors(folder / TENSORS_FILE))

    def _take_weights(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        stored = {name: t for name, t in tensors.items() if name.startswith(("model.", "ema."))}
        places = self._places()
        problems = mismatches(_shapes(places), _shapes(stored))
        if problems:
            raise UserError(f"checkpoint {folder} does not match the model: {listed(problems)}")
        for name, place in places.items():
            place.data.copy_(stored[name])

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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file onto the host.

    Raises:
        UserError: it is none.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error


def random_tensors() -> dict[str, Tensor]:
    """The states of torch's generators: nothing in the loop draws from others that live on."""
    states = {"random.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random(tensors: Mapping[str, Tensor]) -> None:
    """Put the states of `random_tensors` back."""
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"optimizer.{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
