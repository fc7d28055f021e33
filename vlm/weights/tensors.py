"""Tensors in safetensors files: found by the files' headers alone, copied as bytes.

A safetensors file is eight bytes that give the size of its header (little-endian), the header
(JSON: of each tensor its dtype, shape and place), and the tensors' bytes one after the other
(https://huggingface.co/docs/safetensors). Copying bytes needs no memory, whatever a tensor's size,
and keeps every bit and every dtype.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlm.errors import UserError
from vlm.weights.comparison import Shape, listed

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Weights in a form that is never opened: reading it can run any code.
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
COPIED_BYTES = 8 << 20  # at a time
HEADER_ALIGNMENT_BYTES = 8


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies.

    name: what its file calls it.
    dtype: safetensors' word, such as "BF16".
    start: of its bytes, counted from the file's first.
    """

    file: Path
    name: str
    dtype: str
    shape: Shape
    start: int
    num_bytes: int

    def first_rows(self, num_rows: int) -> "StoredTensor":
        """The part that holds the first rows, which lie in front."""
        rows = self.shape[0]
        return StoredTensor(
            self.file,
            self.name,
            self.dtype,
            (num_rows, *self.shape[1:]),
            self.start,
            self.num_bytes // rows * num_rows,
        )

    def pieces(self) -> Iterator[bytes]:
        """The tensor's bytes, in pieces of a few megabytes.

        Raises:
            UserError: the file has become shorter.
        """
        with self.file.open("rb") as source:
            source.seek(self.start)
            left = self.num_bytes
            while left:
                piece = source.read(min(left, COPIED_BYTES))
                if not piece:
                    raise UserError(f"{self.file} became shorter while {self.name} was read")
                yield piece
                left -= len(piece)


class TensorSource(Protocol):
    """What can be written to a file: a tensor that lies in another, or one that is made for it.

    dtype: safetensors' word.
    """

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> Shape: ...

    @property
    def num_bytes(self) -> int: ...

    def pieces(self) -> Iterator[bytes]: ...


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Find every tensor of a folder, by the names in its files; only headers are read.

    Raises:
        UserError: a file is missing or damaged, or two of them hold the same name.
    """
    found: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        for name, tensor in read_header(path).items():
            if name in found:
                raise UserError(f"{path} and {found[name].file.name} both hold {name}")
            found[name] = tensor
    return found


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files: one, or those its index names.

    Raises:
        UserError: there are none, a damaged index, or both kinds.
    """
    index, single = folder / INDEX_FILE, folder / WEIGHTS_FILE
    if not index.is_file():
        if not single.is_file():
            raise UserError(f"{single} cannot be read: {_why_missing(folder)}")
        return [single]
    if single.is_file():
        raise UserError(f"{folder} has both {WEIGHTS_FILE} and {INDEX_FILE}: remove the stale one")
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        stray = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} does not map tensors to files: {error!r}") from error
    if stray:
        raise UserError(f"{index} names {stray[0]!r}, needed: files beside it")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(names)} weights files that {INDEX_FILE} names: "
            f"{listed(missing)}; copy or download the whole folder"
        )
    return [folder / name for name in names]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Find the tensors of one file, in the order of their bytes.

    Raises:
        UserError: the file is missing, truncated, or no safetensors.
    """
    try:
        with safe_open(path, framework="pt"):
            pass  # the library checks the header, and that the file is as long as it says
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from error
    tensors = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = entry["data_offsets"]
        shape = tuple(entry["shape"])
        tensors.append(
            StoredTensor(path, name, entry["dtype"], shape, 8 + size + start, end - start)
        )
    return {tensor.name: tensor for tensor in sorted(tensors, key=lambda tensor: tensor.start)}


def read_tensors(tensors: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    """Read tensors from their files, under the mapping's names.

    They are mapped into memory: a tensor's bytes are read when it is used.

    Raises:
        UserError: a file is missing or damaged.
    """
    by_file: dict[Path, list[str]] = {}
    for name, tensor in tensors.items():
        by_file.setdefault(tensor.file, []).append(name)
    read: dict[str, Tensor] = {}
    for path, names in by_file.items():
        try:
            with safe_open(path, framework="pt") as file:
                for name in names:
                    read[name] = file.get_tensor(tensors[name].name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read as safetensors: {error}") from error
    return read


def copy_tensors(tensors: Mapping[str, TensorSource], path: Path) -> None:
    """Write a safetensors file, a piece of a tensor at a time, under the mapping's names.

    Raises:
        UserError: a source has become shorter.
        OSError: the file cannot be written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        offsets = [end, end + tensor.num_bytes]
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        end += tensor.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT_BYTES)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            out.writelines(tensor.pieces())
        out.flush()
        os.fsync(out.fileno())


def copy_sharded(shards: Sequence[Mapping[str, TensorSource]], folder: Path) -> None:
    """Write a weights file for each mapping, and the index that more than one need.

    Raises: as `copy_tensors`.
    """
    if len(shards) == 1:
        copy_tensors(shards[0], folder / WEIGHTS_FILE)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        copy_tensors(shard, folder / file)
        weight_map |= dict.fromkeys(shard, file)
    total_size = sum(tensor.num_bytes for shard in shards for tensor in shard.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _why_missing(folder: Path) -> str:
    pickles = sorted(path.name for pattern in PICKLE_PATTERNS for path in folder.glob(pattern))
    if not pickles:
        return f"there is no such file, and no {INDEX_FILE}"
    return (
        f"the folder has {pickles[0]}, a pickle, which can run any code when it is read and is "
        f"never opened here; where its origin is trusted, load it with the library that wrote it "
        f"and save it as safetensors (transformers: save_pretrained)"
    )
