"""Our model folder: configuration, safetensors, tokenizer, chat template and provenance.

A folder holds whole components (`encoder`, `projector`, `decoder`, `text_tower`); a stage takes the
components it needs from its parents' folders and every tensor of a component must fit.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from encoders.config import TextTowerConfig
from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.errors import UserError

CONFIG_FILE = "config.json"
PROVENANCE_FILE = "provenance.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FORMAT = "vlm-1"
MAX_LISTED_MISMATCHES = 5


class FolderConfig(BaseModel):
    """The content of `config.json`: what the folder's tensors are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    stage: str
    components: tuple[str, ...]
    model: VLMConfig
    text_tower: TextTowerConfig | None = None


def save_folder(
    folder: Path,
    config: FolderConfig,
    components: Mapping[str, nn.Module],
    processor: Processor,
    provenance: Mapping[str, Any],
) -> None:
    """Write a model folder into `folder`, beside what a run keeps there.

    The files are written to a temporary folder and then moved in, `config.json` last and the old
    one removed first: a folder with a `config.json` is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{os.getpid()}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    tensors = {
        f"{component}.{name}": tensor.detach().contiguous()
        for component, module in components.items()
        for name, tensor in module.state_dict().items()
    }
    save_torch_state_dict(tensors, temporary)
    write_json(temporary / PROVENANCE_FILE, dict(provenance))
    processor.save(temporary)
    write_json(temporary / CONFIG_FILE, config.model_dump(mode="json"))
    flush_files(temporary)
    for stale in [CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE]:
        (folder / stale).unlink(missing_ok=True)
    for path in sorted(temporary.iterdir(), key=lambda path: path.name == CONFIG_FILE):
        path.replace(folder / path.name)
    temporary.rmdir()


def is_model_folder(folder: Path) -> bool:
    """Whether a folder says of itself that it is one of ours, of whatever version."""
    try:
        content = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "format" in content


def read_folder_config(folder: Path) -> FolderConfig:
    """Read `config.json` of a model folder.

    Raises:
        UserError: the folder or the file is missing, or it is not a model folder of ours.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        what = "there is no such folder" if not folder.exists() else f"it has no {CONFIG_FILE}"
        raise UserError(f"{folder} is not a model folder: {what}")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} does not describe a model folder of format {FORMAT!r}")
    try:
        return FolderConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}") from error


def read_provenance(folder: Path) -> dict[str, Any]:
    """The content of `provenance.json`."""
    path = folder / PROVENANCE_FILE
    if not path.is_file():
        raise UserError(f"{folder} has no {PROVENANCE_FILE}: not a finished model folder")
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    return content


def read_component(folder: Path, component: str) -> dict[str, Tensor]:
    """Read one component's tensors, named as its module names them.

    Raises:
        UserError: the folder does not hold the component, or a weights file is damaged or has a
            tensor of no component.
    """
    config = read_folder_config(folder)
    if component not in config.components:
        raise UserError(
            f"{folder} holds {', '.join(config.components)} (stage {config.stage}), "
            f"no {component}; point to a folder that has one"
        )
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():
                    owner, _, rest = name.partition(".")
                    if owner not in config.components:
                        raise UserError(f"{path} has {name}, of no component in {CONFIG_FILE}")
                    if owner == component:
                        tensors[rest] = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read as safetensors: {error}") from error
    return tensors


def load_component(
    module: nn.Module, tensors: Mapping[str, Tensor], component: str, source: Path
) -> None:
    """Copy tensors into a module after checking that names and shapes are exactly its own.

    Raises:
        UserError: names the first tensors that are missing, left over, or of another shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    problems = []
    for name, shape in expected.items():
        if name not in tensors:
            problems.append(f"{name} is missing (needed: {list(shape)})")
        elif tuple(tensors[name].shape) != shape:
            problems.append(f"{name} is {list(tensors[name].shape)}, needed: {list(shape)}")
    problems += [f"{name} has no place in the model" for name in tensors if name not in expected]
    if problems:
        raise UserError(f"{component} of {source} does not match the model: {listed(problems)}")
    module.load_state_dict(dict(tensors))


def check_same_config(ours: BaseModel, theirs: BaseModel, section: str, source: Path) -> None:
    """Compare two configurations field by field.

    Raises:
        UserError: names the first fields that differ, with both values.
    """
    problems = [
        f"{path} is {left!r} here and {right!r} there"
        for path, left, right in differences(ours.model_dump(), theirs.model_dump(), section)
    ]
    if problems:
        raise UserError(f"{source} does not match this config: {listed(problems)}")


def differences(
    left: Mapping[str, Any], right: Mapping[str, Any], path: str = ""
) -> list[tuple[str, Any, Any]]:
    """Where two nested mappings differ: dotted path, value of the left, value of the right."""
    found: list[tuple[str, Any, Any]] = []
    for key in {**left, **right}:
        here = f"{path}.{key}".lstrip(".")
        one, other = left.get(key), right.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += differences(one, other, here)
        elif one != other:
            found.append((here, one, other))
    return found


def listed(problems: Sequence[str]) -> str:
    """The first few problems in one line, and how many more there are."""
    line = "; ".join(problems[:MAX_LISTED_MISMATCHES])
    more = len(problems) - MAX_LISTED_MISMATCHES
    return line + (f" (and {more} more)" if more > 0 else "")


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files: one, or those its index names."""
    index = folder / INDEX_FILE
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} does not map tensors to files: {error!r}") from error
        return [folder / name for name in names]
    return [folder / WEIGHTS_FILE]


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with a final newline."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def flush_files(folder: Path) -> None:
    """Flush a folder's files to disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
