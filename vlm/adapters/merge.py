"""An adapter and its base as one model folder."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from vlm.adapters.folder import Adapter, read_adapter, read_adapter_config
from vlm.chat.processor import Processor
from vlm.provenance import commit, library_versions
from vlm.weights.comparison import Shape
from vlm.weights.convert import by_file, checked_tensors, new_folder
from vlm.weights.folder import (
    CONFIG_FILE,
    FORMAT,
    PROVENANCE_FILE,
    read_folder_config,
    read_provenance,
    write_json,
)
from vlm.weights.tensors import StoredTensor, TensorSource, copy_sharded, read_tensors


@dataclass(frozen=True)
class MergedTensor:
    """A base's tensor with an adapter in it, made when it is written, in the base's dtype."""

    name: str
    original: StoredTensor
    adapter: Adapter

    @property
    def dtype(self) -> str:
        return self.original.dtype

    @property
    def shape(self) -> Shape:
        return self.original.shape

    @property
    def num_bytes(self) -> int:
        return self.original.num_bytes

    def pieces(self) -> Iterator[bytes]:
        """The tensor's bytes, in one piece."""
        original = read_tensors({self.name: self.original})[self.name]
        merged = self.adapter.merged(self.name, original).to(original.dtype)
        yield merged.contiguous().view(torch.uint8).numpy().tobytes()


def merge(source: Path, out: Path) -> None:
    """Write a whole model folder of ours from an adapter folder and its base.

    What the adapter does not change is copied byte by byte; memory is needed for one matrix.

    Args:
        out: must not exist, or be empty.
    Raises:
        UserError: the adapter or its base is missing, damaged, or they do not belong together;
            `out` holds something, or cannot be written. Nothing is left there then.
    """
    adapter = read_adapter(source)
    found = read_folder_config(adapter.base)
    tensors = checked_tensors(adapter.base, found)
    changes = set(adapter.changes)
    shards: list[dict[str, TensorSource]] = [
        {
            name: MergedTensor(name, tensor, adapter) if name in changes else tensor
            for name, tensor in shard.items()
        }
        for shard in by_file(tensors)
    ]
    processor = Processor.from_folder(adapter.base, found.model.vision)
    trained = read_provenance(source)
    provenance = {
        "stage": trained["stage"],
        "seed": trained["seed"],
        "base": read_adapter_config(source).base.model_dump(mode="json"),
        "adapter": {"folder": str(source), "provenance": trained},
        "commit": commit(),
        "versions": library_versions(),
    }
    config = found.model_copy(update={"format": FORMAT, "stage": trained["stage"]})
    with new_folder(out, tensors) as folder:
        copy_sharded(shards, folder)
        processor.save(folder)
        write_json(folder / PROVENANCE_FILE, provenance)
        write_json(folder / CONFIG_FILE, config.model_dump(mode="json"))
