"""The hash of a model's weights: of names, dtypes, shapes and every bit, and of nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlm.chat.processor import Processor
from vlm.model import VisionLanguageModel
from vlm.weights.convert import from_hf
from vlm.weights.fingerprint import weights_sha256
from vlm.weights.folder import FORMAT, FolderConfig, save_folder
from vlm.weights.tensors import WEIGHTS_FILE

NORM = "decoder.norm.weight"
COMPONENTS = ("encoder", "projector", "decoder")


@pytest.fixture
def folder(tmp_path: Path, open_model: VisionLanguageModel, processor: Processor) -> Path:
    config = FolderConfig(
        format=FORMAT, stage="align", components=COMPONENTS, model=open_model.config
    )
    modules = {name: open_model.get_submodule(name) for name in COMPONENTS}
    save_folder(tmp_path / "model", config, modules, processor, {})
    return tmp_path / "model"


def _flip_one_bit(tensors: dict[str, Tensor]) -> None:
    tensors[NORM].view(torch.int32)[3] ^= 1


def _swap_two(tensors: dict[str, Tensor]) -> None:
    other = "decoder.layers.0.input_layernorm.weight"
    tensors[NORM][0] = 2.0
    tensors[NORM], tensors[other] = tensors[other], tensors[NORM]


def _rename(tensors: dict[str, Tensor]) -> None:
    tensors[f"{NORM}_"] = tensors.pop(NORM)


def _change_dtype(tensors: dict[str, Tensor]) -> None:
    tensors[NORM] = tensors[NORM].half()


@pytest.mark.parametrize("change", [_flip_one_bit, _swap_two, _rename, _change_dtype])
def test_any_change_of_the_weights_changes_it(
    change: Callable[[dict[str, Tensor]], None], folder: Path
) -> None:
    before = weights_sha256(folder)
    assert before == weights_sha256(folder) and len(before) == 64
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    assert weights_sha256(folder) != before


def test_files_do_not_matter(folder: Path) -> None:
    before = weights_sha256(folder)
    tensors = load_file(folder / WEIGHTS_FILE)
    (folder / WEIGHTS_FILE).unlink()
    save_torch_state_dict(tensors, folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert weights_sha256(folder) == before


def test_a_transformers_folder_has_that_of_its_conversion(
    mllama_source: Path, tmp_path: Path
) -> None:
    from_hf(mllama_source, tmp_path / "ours", {})
    assert weights_sha256(tmp_path / "ours") == weights_sha256(mllama_source)
