"""Checkpoints of a run in progress: atomic, verified, free of pickle.

A checkpoint is a folder `checkpoints/step-00000100` with `tensors.safetensors` (weights, optimizer
state, random state) and `state.json` (step, data position, configuration). The folder is written
under a temporary name and renamed when it is whole; older ones are deleted last.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.loader import LoaderState
from vlm.errors import UserError
from vlm.weights.comparison import differences, listed
from vlm.weights.folder import flush_files, write_json

TENSORS_FILE = "tensors.safetensors"
STATE_FILE = "state.json"
STEP_PREFIX = "step-"


@dataclass(frozen=True)
class Progress:
    """Where a run stands, apart from its tensors.

    seconds: time spent in training so far.
    """

    step: int
    loader: LoaderState
    seconds: float


def save_checkpoint(
    folder: Path,
    progress: Progress,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    config: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write a checkpoint and delete all but the newest `keep`; return its path."""
    path = folder / f"{STEP_PREFIX}{progress.step:08d}"
    temporary = folder / f".{path.name}.{os.getpid()}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    tensors = {**_module_tensors(modules), **_optimizer_tensors(optimizer)}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    save_file(
        {name: t.detach().contiguous() for name, t in tensors.items()}, temporary / TENSORS_FILE
    )
    write_json(temporary / STATE_FILE, {"progress": asdict(progress), "config": dict(config)})
    flush_files(temporary)
    if path.exists():  # the same step, saved by a run that this one repeats
        shutil.rmtree(path)
    temporary.rename(path)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(folder.glob(f"{STEP_PREFIX}*")) if folder.is_dir() else []


def load_checkpoint(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    config: Mapping[str, Any],
) -> Progress:
    """Restore modules, optimizer and random state; return where the run stood.

    Raises:
        UserError: a file is missing or damaged, or the run's configuration has changed.
    """
    state_path = path / STATE_FILE
    try:
        state = json.loads(state_path.read_text())
        tensors = load_file(path / TENSORS_FILE)
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from error
    changed = [
        f"{path} was {then!r}, is {now!r}"
        for path, then, now in differences(state["config"], config)
    ]
    if changed:
        raise UserError(
            f"the configuration has changed since {path}: {listed(changed)}; "
            "put it back, or start anew in another run folder (out=...)"
        )
    for component, module in modules.items():
        prefix = f"model.{component}."
        module.load_state_dict(
            {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        )
    _restore_optimizer(optimizer, tensors)
    torch.set_rng_state(tensors["random.cpu"])
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
    progress = state["progress"]
    return Progress(progress["step"], LoaderState.parse(progress["loader"]), progress["seconds"])


def _module_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"model.{component}.{name}": tensor
        for component, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


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
