"""Model folders: configuration, safetensors, tokenizer, chat template and provenance.

A folder holds whole components (`encoder`, `projector`, `decoder`; of an encoder stage `text_tower`
and `contrastive_head` too); a stage takes the components it needs from its parents' folders and
every tensor of a component must fit. Folders of transformers' Mllama are read the same way, as
whole models under our names; what is written is always ours.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from encoders.config import TextTowerConfig
from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.errors import UserError
from vlm.weights.comparison import differences, listed, mismatches
from vlm.weights.mllama_folder import (
    ARCHITECTURE,
    MODEL_TYPE,
    mllama_tensors,
    read_mllama_config,
)
from vlm.weights.tensors import (
    INDEX_FILE,
    WEIGHTS_FILE,
    StoredTensor,
    read_tensors,
    stored_tensors,
)

CONFIG_FILE = "config.json"
PROVENANCE_FILE = "provenance.json"
# In an adapter's folder (vlm/adapters/folder.py), which has no configuration of a model.
ADAPTER_FILE = "adapter.json"
FORMAT = "vlm-1"
# Format, and stage, of a transformers folder.
MLLAMA = "mllama"
# What a whole model consists of.
COMPONENTS = ("encoder", "projector", "decoder")


class FolderConfig(BaseModel):
    """What a folder's tensors are: the content of our `config.json`.

    format: "vlm-1", or "mllama" for a transformers folder, which stands for stage "mllama" too.
    """

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
    """Write a model folder of whole components; otherwise as `write_folder`."""
    write_folder(folder, config, component_tensors(components), processor, provenance)


def component_tensors(components: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The tensors of components under their full names, `component.name`."""
    return {
        f"{component}.{name}": tensor.detach()
        for component, module in components.items()
        for name, tensor in module.state_dict().items()
    }


def write_folder(
    folder: Path,
    config: FolderConfig,
    tensors: Mapping[str, Tensor],
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
    save_torch_state_dict({name: t.contiguous() for name, t in tensors.items()}, temporary)
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
    """Whether a folder says of itself that it is one of ours, of whatever version, or a Mllama."""
    try:
        content = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return False
    if not isinstance(content, dict):
        return False
    return "format" in content or content.get("model_type") == MODEL_TYPE


def read_folder_config(folder: Path) -> FolderConfig:
    """Read what a model folder holds: one of ours, or a transformers Mllama folder.

    Raises:
        UserError: the folder or its `config.json` is missing or damaged, it is the folder of
            another kind of model, or one of Mllama's that we cannot compute exactly.
    """
    path = folder / CONFIG_FILE
    if not path.is_file() and (folder / ADAPTER_FILE).is_file():
        raise UserError(
            f"{folder} holds an adapter, not a whole model; "
            f"`vlm convert merge {folder} OUT` makes one of it"
        )
    if not path.is_file():
        what = "there is no such folder" if not folder.exists() else f"it has no {CONFIG_FILE}"
        raise UserError(f"{folder} is not a model folder: {what}")
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if isinstance(content, dict) and content.get("model_type") == MODEL_TYPE:
        model = read_mllama_config(folder, content)
        return FolderConfig(format=MLLAMA, stage=MLLAMA, components=COMPONENTS, model=model)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(_foreign(path, content))
    try:
        return FolderConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}") from error


def read_provenance(folder: Path) -> dict[str, Any]:
    """The content of `provenance.json`; a transformers folder tells nothing of its training."""
    path = folder / PROVENANCE_FILE
    if not path.is_file():
        if read_folder_config(folder).format == MLLAMA:
            return {"stage": MLLAMA, "seed": None, "commit": None}
        raise UserError(f"{folder} has no {PROVENANCE_FILE}: not a finished model folder")
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    return content


def folder_tensors(folder: Path, config: FolderConfig) -> dict[str, StoredTensor]:
    """Find the tensors of a model folder by their full names, `component.name`.

    Only the headers of its files are read.

    Raises:
        UserError: a file is missing or damaged, or has a tensor of no component; a transformers
            folder must also hold exactly the tensors that its model has.
    """
    if config.format == MLLAMA:
        return mllama_tensors(folder, config.model)
    tensors = stored_tensors(folder)
    for name, tensor in tensors.items():
        if name.partition(".")[0] not in config.components:
            raise UserError(f"{tensor.file} has {name}, of no component in {CONFIG_FILE}")
    return tensors


def read_component(folder: Path, component: str) -> dict[str, Tensor]:
    """Read one component's tensors, named as its module names them.

    Raises:
        UserError: the folder does not hold the component; otherwise as `folder_tensors`.
    """
    return read_tensors(stored_component(folder, component))


def stored_component(folder: Path, component: str) -> dict[str, StoredTensor]:
    """Find one component's tensors, as `read_component` names them; only headers are read.

    Raises:
        UserError: as `read_component`.
    """
    config = read_folder_config(folder)
    if component not in config.components:
        raise UserError(
            f"{folder} holds {', '.join(config.components)} (stage {config.stage}), "
            f"no {component}; point to a folder that has one"
        )
    prefix = f"{component}."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in folder_tensors(folder, config).items()
        if name.startswith(prefix)
    }


def load_component(
    module: nn.Module, tensors: Mapping[str, Tensor], component: str, source: Path
) -> None:
    """Copy tensors into a module after checking that names and shapes are exactly its own.

    Raises:
        UserError: names the first tensors that are missing, left over, or of another shape.
    """
    check_component(module, tensors, component, source)
    module.load_state_dict(dict(tensors))


def check_component(
    module: nn.Module,
    tensors: Mapping[str, Tensor] | Mapping[str, StoredTensor],
    component: str,
    source: Path,
) -> None:
    """Check that the names and shapes of tensors are exactly a module's own.

    Raises:
        UserError: names the first tensors that are missing, left over, or of another shape.
    """
    problems = mismatches(
        {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()},
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
    )
    if problems:
        raise UserError(f"{component} of {source} does not match the model: {listed(problems)}")


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


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON with a final newline."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def flush_files(folder: Path) -> None:
    """Flush a folder's files to disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _foreign(path: Path, content: Any) -> str:
    """Say what a `config.json` describes that is no model folder."""
    found = content if isinstance(content, dict) else {}
    kind = (found.get("architectures") or [found.get("model_type")])[0]
    if kind is None:
        return f"{path} does not describe a model folder of format {FORMAT!r}"
    return (
        f"{path} describes a {kind} (model_type {found.get('model_type')!r}); whole models are "
        f"read from folders of ours and from {ARCHITECTURE} (model_type {MODEL_TYPE!r})"
    )
