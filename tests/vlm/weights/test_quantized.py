"""Rounded weights: how far from whole ones, what is left alone, and clear errors."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import vlm
from vlm import cli
from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.errors import UserError
from vlm.inputs import Example, stack_examples
from vlm.model import VisionLanguageModel
from vlm.weights.folder import COMPONENTS, FORMAT, FolderConfig, save_folder
from vlm.weights.quantized import parse_quantization, quantize

MESSAGES = [{"role": "user", "content": "What colour is the large square?"}]


@pytest.fixture(scope="module")
def whole(tiny_config: VLMConfig, processor: Processor) -> VisionLanguageModel:
    """A model whose layers can be cut into groups of 32 weights."""
    torch.manual_seed(0)
    decoder = tiny_config.decoder.model_copy(
        update={"hidden_size": 64, "intermediate_size": 128, "head_size": 16}
    )
    config = tiny_config.model_copy(update={"decoder": decoder})
    model = VisionLanguageModel(config, processor.tokenizer.image_id)
    for name, parameter in model.named_parameters():
        if "gate" in name.rpartition(".")[2]:
            torch.nn.init.ones_(parameter)
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def folder(
    whole: VisionLanguageModel, processor: Processor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("models") / "whole"
    config = FolderConfig(
        format=FORMAT, stage="finetune", components=COMPONENTS, model=whole.config
    )
    save_folder(path, config, {n: whole.get_submodule(n) for n in COMPONENTS}, processor, {})
    return path


def logits(model: vlm.Model, image: Image.Image) -> Tensor:
    """Of every token of long random texts about a picture, (tokens, V)."""
    torch.manual_seed(1)
    rows = []
    for _ in range(4):
        ids = torch.cat(
            [torch.tensor([model.network.image_token_id]), torch.randint(0, 250, (60,))]
        )
        rows.append(Example(ids, ids > 0, (model.processor.tile(image),)))
    with torch.inference_mode():
        hidden = model.network(stack_examples(rows, 0))
        return model.network.decoder.logits(hidden).float().flatten(0, 1)


# A weight is off by half a step: of 254 across twice the largest of a row in 8 bits, of 15 across
# the range of a group in 4. Errors of nine layers add up, and random weights have near ties.
@pytest.mark.parametrize(
    ("kind", "dtype", "most_error", "least_agreement", "most_bytes"),
    [("int8", "float32", 0.02, 0.97, 0.3), ("int4", "bfloat16", 0.25, 0.75, 0.35)],
)
def test_rounded_weights_give_nearly_the_same_logits_in_less_memory(
    folder: Path,
    picture: Callable[..., Image.Image],
    kind: str,
    dtype: str,
    most_error: float,
    least_agreement: float,
    most_bytes: float,
) -> None:
    image = picture(0, 32, 32)
    expected = logits(vlm.load(folder, "cpu", dtype), image)
    model = vlm.load(folder, "cpu", quantize=kind)
    found = logits(model, image)
    error = (found - expected).norm() / expected.norm()
    agreement = (found.argmax(-1) == expected.argmax(-1)).float().mean()
    assert 0 < error < most_error and agreement > least_agreement
    assert model.saving is not None
    assert 0 < model.saving.after < most_bytes * model.saving.before
    reply = model.chat(MESSAGES, max_tokens=4)
    assert reply.usage.completion_tokens <= 4
    assert model.score(MESSAGES, ["Blue."])[0].num_tokens > 0


def test_nothing_but_the_parts_named_is_rounded(folder: Path, whole: VisionLanguageModel) -> None:
    model = vlm.load(folder, "cpu", quantize={"output": "int8", "encoder": "int8"})
    for name, parameter in model.network.named_parameters():
        rounded = type(parameter) is not torch.nn.Parameter
        matrix = parameter.dim() == 2 and name.endswith("proj.weight")
        if name.startswith("decoder.layers.") or "gate" in name or not name.endswith("weight"):
            assert not rounded and torch.equal(parameter, whole.get_parameter(name)), name
        elif name == "decoder.lm_head.weight" or (name.startswith("encoder.") and matrix):
            assert rounded, name
    default = vlm.load(folder, "cpu", quantize="int8").network
    rounded_names = {n for n, p in default.named_parameters() if type(p) is not torch.nn.Parameter}
    assert rounded_names and all(name.startswith("decoder.layers.") for name in rounded_names)
    assert not any("norm" in name or "gate." in name for name in rounded_names)


def test_what_is_rounded_is_told_by_words_or_by_a_mapping() -> None:
    assert parse_quantization(None) == {}
    assert parse_quantization("int4") == parse_quantization({"decoder": "int4"})
    words = ["int8", "output=int4"]
    assert parse_quantization(words) == {"decoder": "int8", "output": "int4"}
    for wrong in ("int2", "vision=int8", ["int8", "decoder=int4"], {"decoder": "fp8"}, ""):
        with pytest.raises(UserError, match="the parts are decoder, output, projector, encoder"):
            parse_quantization(wrong)


def test_what_cannot_be_rounded_is_an_error_that_says_why(
    folder: Path,
    open_model: VisionLanguageModel,
    tiny_config: VLMConfig,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(UserError, match=r"int4 needs weights of bfloat16.*float32; set dtype"):
        vlm.load(folder, "cpu", "float32", quantize="int4")
    with pytest.raises(UserError, match=r"multiple of 32 inputs.*down_proj has 48 and 32"):
        quantize(open_model.to(torch.bfloat16), {"decoder": "int4"})
    tied = tiny_config.decoder.model_copy(update={"tie_embeddings": True})
    model = VisionLanguageModel(tiny_config.model_copy(update={"decoder": tied}), 299)
    with pytest.raises(UserError, match="the output has no linear layer of its own"):
        quantize(model, {"output": "int8"})
    assert cli.main(["serve", str(folder), "--quantize", "int3"]) == 2
    assert "error: quantize is ['int3']" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UserError, match=r"needs torchao.*pip install 'vlm\[quant\]'"):
        vlm.load(folder, "cpu", quantize="int8")
