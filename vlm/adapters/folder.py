"""Adapter folders: low-rank matrices and gates, and which base they belong to.

`adapter_model.safetensors` and `adapter_config.json` are peft's own format, and tensors are named
as the base's library names them: an adapter on a transformers Mllama folder opens in peft, gates
included. `adapter.json` says which base it is, by place and by hash, and is written last. The base
lies where it lay; nothing of it is copied, and an adapter is refused on any other.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from vlm.adapters.config import LoraConfig, LoraTarget
from vlm.adapters.layers import MATRIX, adapted_layers, adapter_shapes
from vlm.chat.files import read_json_object
from vlm.config import VLMConfig
from vlm.errors import UserError
from vlm.model import VisionLanguageModel
from vlm.weights.comparison import listed, mismatches
from vlm.weights.fingerprint import weights_sha256
from vlm.weights.folder import (
    ADAPTER_FILE,
    COMPONENTS,
    CONFIG_FILE,
    MLLAMA,
    PROVENANCE_FILE,
    flush_files,
    folder_tensors,
    read_folder_config,
    write_json,
)
from vlm.weights.mllama_names import mllama_name, name_in_memory, our_name
from vlm.weights.tensors import read_header, read_tensors

FORMAT = "vlm-adapter-1"
WEIGHTS_FILE = "adapter_model.safetensors"
PEFT_CONFIG_FILE = "adapter_config.json"
# peft's wrapper stands before every name.
PREFIX = "base_model.model."


class Base(BaseModel):
    """The model that an adapter belongs to.

    format: of its folder (vlm/weights/folder.py).
    sha256: of its weights (vlm/weights/fingerprint.py).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    format: str
    sha256: str


class AdapterConfig(BaseModel):
    """What an adapter folder is: the content of its `adapter.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str
    base: Base
    lora: LoraConfig

    @classmethod
    def on(cls, base: Path, lora: LoraConfig) -> "AdapterConfig":
        """Describe adapters on the model in a folder; reads all of its weights."""
        found = Base(
            folder=base, format=read_folder_config(base).format, sha256=weights_sha256(base)
        )
        return cls(format=FORMAT, base=found, lora=lora)


@dataclass(frozen=True)
class Adapter:
    """An adapter that has been read, and its base found and verified.

    layers: the names of the layers that it changes.
    tensors: by the names that `adapter_shapes` gives them.
    """

    base: Path
    layers: Mapping[str, LoraTarget]
    tensors: Mapping[str, Tensor]

    @property
    def changes(self) -> list[str]:
        """The names of the base's tensors that it changes: weights, then gates."""
        gates = [name for name in self.tensors if MATRIX not in name]
        return [*(f"{layer}.weight" for layer in self.layers), *gates]

    def merged(self, name: str, original: Tensor) -> Tensor:
        """Return one of the base's tensors with the adapter in it, in float32."""
        if name in self.tensors:  # a gate
            return self.tensors[name].to(original.device, torch.float32)
        layer = name.removesuffix(".weight")
        down, up = (
            self.tensors[f"{layer}{MATRIX}{matrix}.weight"].to(original.device, torch.float32)
            for matrix in "AB"
        )
        return original.float() + self.layers[layer].scale * (up @ down)

    def merge_into(self, network: VisionLanguageModel) -> None:
        """Change a network that holds the base's weights, in whatever dtype it holds them."""
        stored = folder_tensors(self.base, read_folder_config(self.base))
        originals = read_tensors({name: stored[name] for name in self.changes})
        for name, original in originals.items():
            parameter = network.get_parameter(name).data
            parameter.copy_(self.merged(name, original.to(parameter.device)))


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model."""
    return (folder / ADAPTER_FILE).is_file() and not (folder / CONFIG_FILE).is_file()


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read what an adapter folder is.

    Raises:
        UserError: `adapter.json` is missing, damaged, or of another format.
    """
    path = folder / ADAPTER_FILE
    if not path.is_file():
        raise UserError(f"{folder} is not the folder of an adapter: it has no {ADAPTER_FILE}")
    try:
        config = AdapterConfig.model_validate(read_json_object(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: {where}: {first['msg']}") from error
    if config.format != FORMAT:
        raise UserError(f"{path} is of format {config.format!r}, needed: {FORMAT!r}")
    return config


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter, find its base and verify that it is the one that it was trained on.

    Raises:
        UserError: the base is not there or has other weights, or the adapter's tensors are not
            those that it should have.
    """
    config = read_adapter_config(folder)
    base = _find_base(folder, config.base)
    found = weights_sha256(base)
    if found != config.base.sha256:
        raise UserError(
            f"{folder} is an adapter on other weights than those in {base}, whose sha256 is "
            f"{found}, needed: {config.base.sha256}; an adapter fits the model that it was trained "
            "on, and no other"
        )
    model = _shell(read_folder_config(base).model)
    tensors = _read_tensors(folder / WEIGHTS_FILE)
    problems = mismatches(
        adapter_shapes(model, config.lora),
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
    )
    if problems:
        path = folder / WEIGHTS_FILE
        raise UserError(f"{path} does not match {ADAPTER_FILE}: {listed(problems)}")
    return Adapter(base, adapted_layers(model, config.lora), tensors)


def save_adapter(
    folder: Path,
    config: AdapterConfig,
    model: VLMConfig,
    tensors: Mapping[str, Tensor],
    provenance: Mapping[str, Any],
) -> None:
    """Write an adapter into `folder`, beside what a run keeps there, `adapter.json` last.

    Args:
        model: the base's shape.
        tensors: by the names that `adapter_shapes` gives them.
    """
    rename = _mllama_layer if config.base.format == MLLAMA else str
    layers = {
        rename(name): target for name, target in adapted_layers(_shell(model), config.lora).items()
    }
    described = peft_config(layers).to_dict()
    described |= {
        "base_model_name_or_path": str(config.base.folder),
        "inference_mode": True,
        "target_modules": list(layers),
    }
    named = {}
    for name, tensor in tensors.items():
        layer, matrix, rest = name.partition(MATRIX)
        named[f"{PREFIX}{rename(layer)}{matrix}{rest}"] = tensor.detach().cpu().contiguous()
    temporary = folder / f".{os.getpid()}.writing"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(named, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
    write_json(temporary / PEFT_CONFIG_FILE, described)
    write_json(temporary / PROVENANCE_FILE, dict(provenance))
    write_json(temporary / ADAPTER_FILE, config.model_dump(mode="json"))
    flush_files(temporary)
    for path in sorted(temporary.iterdir(), key=lambda path: path.name == ADAPTER_FILE):
        path.replace(folder / path.name)
    temporary.rmdir()


def peft_config(layers: Mapping[str, LoraTarget]) -> Any:
    """peft's configuration of adapters on these layers; it has one dropout for all, left at 0."""
    import peft  # takes seconds, and merging needs none of it

    usual = next(iter(layers.values()))
    ranks = {name: t.rank for name, t in layers.items() if t.rank != usual.rank}
    alphas = {name: t.alpha for name, t in layers.items() if t.alpha != usual.alpha}
    return peft.LoraConfig(
        r=usual.rank,
        lora_alpha=usual.alpha,  # type: ignore[arg-type]  # a number to divide by the rank
        rank_pattern=ranks,
        alpha_pattern=alphas,
        target_modules=list(layers),
    )


def _shell(config: VLMConfig) -> VisionLanguageModel:
    """A model of a shape, without numbers."""
    with torch.device("meta"):
        return VisionLanguageModel(config, image_token_id=0)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """Read an adapter's tensors by our names, whichever library's they are stored under."""
    stored = read_header(path)
    return read_tensors({_our_name(name): tensor for name, tensor in stored.items()})


def _our_name(stored: str) -> str:
    """Return our name of an adapter's tensor; one that is none of ours or Mllama's stays."""
    name = stored.removeprefix(PREFIX)
    if name.partition(".")[0] in COMPONENTS:
        return name
    layer, matrix, rest = name.partition(MATRIX)
    if not matrix:
        return our_name(name) or name
    found = our_name(f"{layer}.weight")
    return name if found is None else f"{found.removesuffix('.weight')}{matrix}{rest}"


def _mllama_layer(name: str) -> str:
    """Return transformers' name of a layer or a gate."""
    as_stored = mllama_name(name)
    if as_stored is not None:  # a gate
        return name_in_memory(as_stored)
    return name_in_memory(str(mllama_name(f"{name}.weight"))).removesuffix(".weight")


def _find_base(folder: Path, base: Base) -> Path:
    """Look for the base from the working folder, then from the adapter's folder upwards."""
    for start in _starts(folder):
        if (start / base.folder / CONFIG_FILE).is_file():
            return start / base.folder
    raise UserError(
        f"{folder} is an adapter on the model in {base.folder}, which is not there; put it there, "
        f"or write where it lies into {folder / ADAPTER_FILE}, as base.folder"
    )


def _starts(folder: Path) -> Iterator[Path]:
    yield Path()
    yield from (folder.absolute(), *folder.absolute().parents)
