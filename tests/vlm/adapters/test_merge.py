"""vlm convert merge: a whole folder, changed where the adapter changes it and nowhere else."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import vlm
from vlm.adapters.merge import merge
from vlm.cli import main
from vlm.errors import UserError
from vlm.weights.convert import to_hf
from vlm.weights.folder import FORMAT, read_folder_config, read_provenance
from vlm.weights.tensors import stored_tensors

WriteAdapter = Callable[..., dict[str, Tensor]]


def test_a_merged_folder_is_the_loaded_adapter_bit_for_bit(
    base: Path, write_adapter: WriteAdapter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, out = tmp_path / "adapter", tmp_path / "out"
    tensors = write_adapter(adapter, base)
    assert main(["convert", "merge", str(adapter), str(out)]) == 0
    assert capsys.readouterr().out == f"{adapter} -> {out}\n"
    merged, loaded = (vlm.load(folder, device="cpu").network for folder in (out, adapter))
    for name, tensor in loaded.state_dict().items():
        assert merged.state_dict()[name].equal(tensor), name
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {name for name in before if not before[name].equal(after[name])}
    touched = {name.partition(".lora_")[0] for name in tensors}
    assert changed == {name for name in before if name.removesuffix(".weight") in touched}
    found = read_folder_config(out)
    assert (found.format, found.stage) == (FORMAT, "finetune")
    provenance = read_provenance(out)
    assert provenance["seed"] == 7
    assert provenance["adapter"]["folder"] == str(adapter)
    assert provenance["base"]["folder"] == str(base)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (base / name).read_bytes()


def test_weights_keep_the_dtype_of_the_base_and_are_rounded_once(
    base: Path, write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    path = base / "model.safetensors"
    small = {name: tensor.bfloat16() for name, tensor in load_file(path).items()}
    save_file(small, path, metadata={"format": "pt"})
    write_adapter(tmp_path / "adapter", base)
    merge(tmp_path / "adapter", tmp_path / "out")
    assert {t.dtype for t in stored_tensors(tmp_path / "out").values()} == {"BF16"}
    exact = vlm.load(tmp_path / "adapter", device="cpu", dtype="float32").network.state_dict()
    for name, tensor in load_file(tmp_path / "out" / "model.safetensors").items():
        assert tensor.equal(exact[name].to(torch.bfloat16)), name


def test_an_adapter_on_a_transformers_folder_is_merged_and_goes_back_to_transformers(
    mllama_source: Path, write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "adapter", mllama_source)
    merge(tmp_path / "adapter", tmp_path / "out")
    to_hf(tmp_path / "out", tmp_path / "back")
    back, loaded = (
        vlm.load(tmp_path / name, device="cpu").network.state_dict() for name in ("back", "adapter")
    )
    assert all(tensor.equal(loaded[name]) for name, tensor in back.items())
    ends = [
        json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
        for folder in (mllama_source, tmp_path / "back")
    ]
    assert ends[0] == ends[1]


def test_a_folder_that_holds_something_is_left_alone(
    base: Path, write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "adapter", base)
    with pytest.raises(UserError, match="is not empty; choose another folder"):
        merge(tmp_path / "adapter", base)
    with pytest.raises(UserError, match="nowhere is not the folder of an adapter: it has no"):
        merge(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
