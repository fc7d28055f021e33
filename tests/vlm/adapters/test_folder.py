"""Adapter folders: what is written comes back, the base is found and verified, damage is named."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MllamaForConditionalGeneration

import vlm
from vlm.adapters.config import LoraConfig
from vlm.adapters.folder import (
    PEFT_CONFIG_FILE,
    WEIGHTS_FILE,
    is_adapter_folder,
    read_adapter,
)
from vlm.cli import main
from vlm.errors import UserError
from vlm.inputs import Example, ModelInputs, stack_examples
from vlm.model import VisionLanguageModel
from vlm.weights.folder import ADAPTER_FILE, read_component

WriteAdapter = Callable[..., dict[str, Tensor]]
Picture = Callable[..., Image.Image]


@pytest.fixture
def adapter(base: Path, write_adapter: WriteAdapter, tmp_path: Path) -> Path:
    write_adapter(tmp_path / "runs" / "adapter", base)
    return tmp_path / "runs" / "adapter"


def test_what_is_written_comes_back_and_only_matrices_and_gates_are_stored(
    base: Path, write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    tensors = write_adapter(tmp_path / "adapter", base)
    found = read_adapter(tmp_path / "adapter")
    assert found.base == base
    assert found.tensors.keys() == tensors.keys()
    assert all(found.tensors[name].equal(tensor) for name, tensor in tensors.items())
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        *(ADAPTER_FILE, PEFT_CONFIG_FILE, WEIGHTS_FILE, "provenance.json")
    }


def test_a_loaded_adapter_is_the_base_plus_scaled_products_and_its_gates(
    base: Path, write_adapter: WriteAdapter, tmp_path: Path
) -> None:
    tensors = write_adapter(tmp_path / "adapter", base)
    before = {
        f"{component}.{name}": tensor
        for component in ("encoder", "projector", "decoder")
        for name, tensor in read_component(base, component).items()
    }
    after = vlm.load(tmp_path / "adapter", device="cpu").network.state_dict()
    for name, tensor in before.items():
        layer = name.removesuffix(".weight")
        if name in tensors:
            expected = tensors[name]
        elif f"{layer}.lora_A.weight" in tensors:
            scale = 3.0 if layer.startswith(("decoder.layers.3.", "decoder.layers.8.")) else 0.5
            up, down = tensors[f"{layer}.lora_B.weight"], tensors[f"{layer}.lora_A.weight"]
            expected = tensor + scale * (up @ down)
        else:
            expected = tensor
        assert after[name].equal(expected), name


def test_a_base_is_found_from_elsewhere_and_after_both_have_moved(
    base: Path, write_adapter: WriteAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_adapter(Path("runs/a/adapter"), base.relative_to(tmp_path))
    assert read_adapter(Path("runs/a/adapter")).base == Path("models/base")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert read_adapter(tmp_path / "runs/a/adapter").base == base
    for name in ("models", "runs"):
        shutil.move(tmp_path / name, elsewhere / name)
    monkeypatch.chdir(tmp_path)
    assert read_adapter(elsewhere / "runs/a/adapter").base == elsewhere / "models/base"


def test_a_base_that_is_not_there_is_named_and_where_to_write_its_place(
    adapter: Path, base: Path
) -> None:
    base.rename(base.with_name("moved"))
    place = re.escape(str(adapter / ADAPTER_FILE))
    with pytest.raises(UserError, match=rf"which is not there; put it there, or .* {place}, as b"):
        vlm.load(adapter)
    described = json.loads((adapter / ADAPTER_FILE).read_text())
    described["base"]["folder"] = str(base.with_name("moved"))
    (adapter / ADAPTER_FILE).write_text(json.dumps(described))
    assert read_adapter(adapter).base == base.with_name("moved")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("truncated", r"adapter_model\.safetensors cannot be read as safetensors"),
        ("missing", r"layers\.0\.mlp\.up_proj\.lora_A\.weight is missing \(needed: \[2, 32\]\)"),
        ("extra", r"lora_C\.weight has no place in the model"),
        ("rank", r"layers\.0\.self_attn\.q_proj\.lora_A\.weight is \[2, 32\], needed: \[7, 32\]"),
        ("no weights", r"adapter_model\.safetensors cannot be read"),
        ("format", "is of format 'vlm-adapter-0', needed: 'vlm-adapter-1'"),
        ("key", r"adapter\.json: bases: Extra inputs are not permitted"),
        ("no json", r"adapter\.json is not JSON"),
    ],
)
def test_a_damaged_folder_is_named(damage: str, message: str, adapter: Path) -> None:
    weights, path = adapter / WEIGHTS_FILE, adapter / ADAPTER_FILE
    described: dict[str, Any] = json.loads(path.read_text())
    tensors = load_file(weights)
    name = "base_model.model.decoder.layers.0.mlp.up_proj.lora_A.weight"
    if damage == "missing":
        del tensors[name]
    elif damage == "extra":
        tensors[name.replace("lora_A", "lora_C")] = torch.zeros(1)
    elif damage == "rank":
        described["lora"]["decoder"]["rank"] = 7
    elif damage == "format":
        described["format"] = "vlm-adapter-0"
    elif damage == "key":
        described["bases"] = []
    save_file(tensors, weights)
    path.write_text("{" if damage == "no json" else json.dumps(described))
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage == "no weights":
        weights.unlink()
    with pytest.raises(UserError, match=message):
        vlm.load(adapter)


def test_where_a_whole_model_is_needed_an_adapter_is_refused_with_the_way_out(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert is_adapter_folder(adapter)
    assert main(["convert", "to-hf", str(adapter), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"holds an adapter, not a whole model; `vlm convert merge {adapter} OUT`" in error


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_adapter_is_loaded_in_the_dtype_that_is_asked_for(
    dtype: str, adapter: Path, base: Path
) -> None:
    """The sum is made in float32 and rounded once."""
    network = vlm.load(adapter, device="cpu", dtype=dtype).network
    exact = vlm.load(adapter, device="cpu", dtype="float32").network.state_dict()
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == getattr(torch, dtype)
        assert tensor.equal(exact[name].to(tensor.dtype)), name


# peft asks transformers 5 by an older name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_adapter_on_a_transformers_folder_opens_in_peft(
    mllama_source: Path,
    write_adapter: WriteAdapter,
    tmp_path: Path,
    picture: Picture,
    mllama_inputs: Callable[[VisionLanguageModel, ModelInputs], dict[str, Tensor]],
) -> None:
    from peft import PeftModel

    lora = LoraConfig.model_validate(
        {
            "decoder": {"rank": 2, "alpha": 1},
            "cross_attention": {"rank": 1, "alpha": 3},
            "encoder": {"rank": 3, "alpha": 2},
            "projector": {"rank": 4, "alpha": 4},
        }
    )
    folder = tmp_path / "adapter"
    write_adapter(folder, mllama_source, lora)
    ours = vlm.load(folder, device="cpu")
    theirs = PeftModel.from_pretrained(
        MllamaForConditionalGeneration.from_pretrained(mllama_source), folder
    ).eval()
    # transformers lets words before the first image see it (huggingface/transformers#39379).
    ids = torch.tensor([ours.processor.tokenizer.image_id, *range(60, 80)])
    image = ours.processor.tile(picture(0, 56, 28))
    inputs = stack_examples([Example(ids, ids < 0, (image,))], pad_id=0)
    with torch.no_grad():
        logits = ours.network.decoder.logits(ours.network(inputs))
        expected = theirs(**mllama_inputs(ours.network, inputs)).logits
        base = vlm.load(mllama_source, device="cpu").network
        without = base.decoder.logits(base(inputs))
    assert (logits - without).abs().max() > 0.1
    # Two implementations, and an adapter's part is added layer by layer there.
    torch.testing.assert_close(logits, expected, rtol=0.0, atol=5e-5)
