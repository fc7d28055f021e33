"""Tensors by their headers, copied as bytes, in constant memory."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vlm.errors import UserError
from vlm.weights.comparison import mismatches
from vlm.weights.tensors import (
    copy_sharded,
    copy_tensors,
    read_header,
    read_tensors,
    stored_tensors,
    weight_files,
)

TENSORS = {
    "half": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "whole": torch.linspace(0, 1, 5),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.zeros(0, 4),
    "odd": torch.tensor([1, 2, 3], dtype=torch.uint8),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


def assert_equal(path: Path, expected: dict[str, torch.Tensor]) -> None:
    found = load_file(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_a_header_tells_names_shapes_and_dtypes(folder: Path) -> None:
    header = read_header(folder / "model.safetensors")
    assert {name: tensor.shape for name, tensor in header.items()} == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }
    assert header["half"].dtype == "BF16" and header["half"].num_bytes == 12


def test_copies_are_equal_under_new_names_and_torch_reads_them(folder: Path) -> None:
    stored = stored_tensors(folder)
    copy_tensors({f"new.{name}": tensor for name, tensor in stored.items()}, folder / "copy")
    assert_equal(folder / "copy", {f"new.{name}": tensor for name, tensor in TENSORS.items()})
    with safe_open(folder / "copy", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_first_rows_are_the_first_rows(folder: Path) -> None:
    stored = stored_tensors(folder)
    copy_tensors({"top": stored["half"].first_rows(1)}, folder / "copy")
    assert_equal(folder / "copy", {"top": TENSORS["half"][:1]})


def test_shards_and_their_index_are_read_as_one(folder: Path, tmp_path: Path) -> None:
    stored = stored_tensors(folder)
    out = tmp_path / "out"
    out.mkdir()
    copy_sharded([{"half": stored["half"]}, {"odd": stored["odd"]}], out)
    assert [path.name for path in weight_files(out)] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]
    read = read_tensors(stored_tensors(out))
    assert read.keys() == {"half", "odd"} and torch.equal(read["half"], TENSORS["half"])


def test_one_name_in_two_shards_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    save_file({"half": torch.zeros(1)}, folder / "b.safetensors")
    index = {"weight_map": {"half": "a.safetensors", "other": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"b\.safetensors and a\.safetensors both hold half"):
        stored_tensors(folder)


@pytest.mark.parametrize("name", ["../a.safetensors", "/tmp/a.safetensors"])
def test_an_index_names_files_of_its_own_folder_only(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"half": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="needed: files beside it"):
        stored_tensors(folder)


def test_a_single_file_beside_an_index_is_refused(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(UserError, match="has both"):
        stored_tensors(folder)


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_a_truncated_file_is_named(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read as safetensors"):
        stored_tensors(folder)


def test_a_source_that_shrinks_while_it_is_copied_is_named(folder: Path) -> None:
    stored = stored_tensors(folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"model\.safetensors became shorter"):
        copy_tensors(stored, folder / "copy")


def test_mismatches_tell_both_shapes() -> None:
    needed = {"a": (1, 2), "b": (3,), "c": (4,)}
    found = {"a": (1, 2), "b": (3, 1), "d": (5,)}
    assert mismatches(needed, found) == [
        "b is [3, 1], needed: [3]",
        "c is missing (needed: [4])",
        "d has no place in the model (it is [5])",
    ]
