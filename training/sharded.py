"""Tensors of which every rank writes its own parts, read back on any number of ranks.

A rank writes one safetensors file of the parts that it holds: its shards, and on the first rank
what all ranks have alike. Where a part belongs stands in the file's header, as JSON and under the
names that `torch.distributed.checkpoint` gives it (`HuggingFaceStorageReader` reads these files).
Nothing is exchanged and nothing is pickled.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from training.distributed import is_first_rank, num_ranks, rank
from vlm.errors import UserError
from vlm.weights.comparison import Shape

# torch.distributed.checkpoint._hf_utils
OFFSETS_KEY = "DCP_SHARDING_INFO"
OFFSETS_NAME = "saved_offsets"
# Ours: the shapes of whole tensors, without which a missing file would go unnoticed.
SHAPES_KEY = "shapes"
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Part:
    """A rectangular part of a tensor, on the host.

    offsets: where it begins in the whole, along each axis.
    shape: of the whole.
    """

    tensor: Tensor
    offsets: Shape
    shape: Shape


@dataclass(frozen=True)
class Parts:
    """What one rank writes: copies on the host of the parts that it holds, by their names."""

    parts: Mapping[str, Part]

    @staticmethod
    def copy_of(shared: Mapping[str, Tensor], own: Mapping[str, Tensor] = {}) -> "Parts":
        """Copy tensors, wherever they lie; the originals may change then.

        Args:
            shared: sharded, or alike on all ranks; every part of them is written once.
            own: of this rank alone, under names that no other rank uses.
        """
        found = {name: part for name, tensor in shared.items() if (part := _own_part(tensor))}
        found |= {name: _whole_part(tensor) for name, tensor in own.items()}
        return Parts(found)

    @property
    def num_bytes(self) -> int:
        """Bytes of all parts."""
        return sum(p.tensor.numel() * p.tensor.element_size() for p in self.parts.values())

    def write(self, folder: Path) -> list[str]:
        """Write this rank's file into a folder; return its name."""
        place = f"-{rank() + 1:05}-of-{num_ranks():05}" if num_ranks() > 1 else ""
        name = f"tensors{place}.safetensors"
        offsets = {key: {OFFSETS_NAME: list(part.offsets)} for key, part in self.parts.items()}
        shapes = {key: list(part.shape) for key, part in self.parts.items()}
        header = {OFFSETS_KEY: json.dumps(offsets), SHAPES_KEY: json.dumps(shapes)}
        tensors = {key: part.tensor for key, part in self.parts.items()}
        save_file(tensors, folder / name, metadata=header)
        return [name]


@dataclass(frozen=True)
class _StoredPart:
    file: Any
    offsets: Shape
    sizes: Shape


class StoredParts:
    """The tensors of a folder to which every rank has written; only headers are read at first.

    Raises:
        UserError: a file is damaged, or does not say where its parts belong.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._parts: dict[str, list[_StoredPart]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            try:
                self._add(path)
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path} cannot be read as safetensors in parts: {error!r}"
                ) from error

    def read(self, name: str, like: Tensor | None = None) -> Tensor:
        """Read a tensor onto the host whole; or if `like` is sharded, as that is, where it lies.

        Raises:
            UserError: a part of it is in none of the files.
        """
        if not isinstance(like, DTensor):
            shape = self.shapes[name]
            return self._read_region(name, (0,) * len(shape), shape)
        sizes, offsets = compute_local_shape_and_global_offset(
            like.shape, like.device_mesh, like.placements
        )
        region = self._read_region(name, offsets, sizes).to(like.device)
        return DTensor.from_local(
            region,
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )

    def _add(self, path: Path) -> None:
        file: Any = safe_open(path, framework="pt")
        header = file.metadata()
        offsets, shapes = json.loads(header[OFFSETS_KEY]), json.loads(header[SHAPES_KEY])
        for name in file.keys():
            part = file.get_slice(name)
            self.shapes[name] = tuple(shapes[name])
            self.dtypes[name] = DTYPES[part.get_dtype()]
            place = tuple(offsets[name][OFFSETS_NAME])
            stored = _StoredPart(file, place, tuple(part.get_shape()))
            self._parts.setdefault(name, []).append(stored)

    def _read_region(self, name: str, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
        region = torch.empty(tuple(sizes), dtype=self.dtypes[name])
        num_found = 0
        for part in self._parts[name]:
            overlap = [
                (max(start, other), min(start + size, other + length))
                for start, size, other, length in zip(
                    offsets, sizes, part.offsets, part.sizes, strict=True
                )
            ]
            if any(start >= stop for start, stop in overlap):
                continue
            here = tuple(slice(a - o, b - o) for (a, b), o in zip(overlap, offsets, strict=True))
            there = tuple(
                slice(a - o, b - o) for (a, b), o in zip(overlap, part.offsets, strict=True)
            )
            # A tensor without axes has no slices.
            stored = part.file.get_slice(name)[there] if there else part.file.get_tensor(name)
            region[here] = stored
            num_found += prod(stop - start for start, stop in overlap)
        if num_found != region.numel():
            raise UserError(
                f"{self.folder} holds {num_found} of {region.numel()} numbers of {name}: "
                "the file of another rank is missing"
            )
        return region


def gather_whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors whole, on the first rank's host; nothing on the others. All must call it."""
    whole: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            # A copy, for what is gathered may lie in a larger storage, with padding.
            gathered = tensor.full_tensor().detach()
            host = gathered.to("cpu", copy=True) if is_first_rank() else gathered
        else:
            host = tensor.detach().cpu()
        if is_first_rank():
            whole[name] = host
    return whole


def _own_part(tensor: Tensor) -> Part | None:
    """The part of a tensor that this rank writes; None if another one does."""
    if not isinstance(tensor, DTensor):
        return _whole_part(tensor) if is_first_rank() else None
    mesh, placements = tensor.device_mesh, tensor.placements
    coordinate = mesh.get_coordinate()
    assert coordinate is not None
    copies = zip(placements, coordinate, strict=True)
    if any(placement.is_replicate() and place > 0 for placement, place in copies):
        return None
    _, offsets = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    local = tensor.to_local()
    if not local.numel():
        return None
    return Part(_on_host(local), tuple(offsets), tuple(tensor.shape))


def _whole_part(tensor: Tensor) -> Part:
    return Part(_on_host(tensor), (0,) * tensor.dim(), tuple(tensor.shape))


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
