"""Every configuration in the repository loads, and the presets have the sizes they claim."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from transformers import MllamaConfig, MllamaForConditionalGeneration

from eval.benchmark import BenchmarkConfig
from training.config import TrainConfig
from vlm.config import PACKAGE_ROOT, VLMConfig, load_config
from vlm.model import VisionLanguageModel

CONFIGS = sorted((PACKAGE_ROOT / "configs").rglob("*.yaml"))


def preset(name: str, *overrides: str) -> VLMConfig:
    return load_config(VLMConfig, PACKAGE_ROOT / "configs" / "model" / name, overrides)


def build(config: VLMConfig) -> VisionLanguageModel:
    """On the meta device: shapes without numbers."""
    with torch.device("meta"):
        return VisionLanguageModel(config, image_token_id=0)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_config_loads_as_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    if "stage" in yaml.safe_load(text):
        config = load_config(TrainConfig, path)
        # Its head is the command that runs it.
        name = path.relative_to(PACKAGE_ROOT).as_posix()
        assert f"vlm train {config.stage} --config {name}" in text
    elif path.parent.name == "eval":
        assert load_config(BenchmarkConfig, path).name == path.stem
        assert text.startswith(("# vlm eval MODEL ", "# vlm eval score "))
    else:
        build(load_config(VLMConfig, path))


def test_the_presets_are_there() -> None:
    names = {path.stem for path in CONFIGS if path.parent.name == "model"}
    assert {"tiny", "small", "llama3_2_11b", "llama3_2_90b"} <= names


def test_the_11b_preset_has_the_parameters_of_transformers_mllama() -> None:
    with torch.device("meta"):
        theirs = MllamaForConditionalGeneration(MllamaConfig())
    ours = build(preset("llama3_2_11b.yaml", "projector.kind=linear"))
    for part, reference in (
        (ours.encoder, theirs.model.vision_model),
        (ours.projector, theirs.model.multi_modal_projector),
        (ours, theirs),
    ):
        assert num_parameters(part) == num_parameters(reference)


def test_the_full_size_projector_maps_7680_to_4096_to_4096() -> None:
    linears = [
        m for m in build(preset("llama3_2_11b.yaml")).projector.layers if len(list(m.parameters()))
    ]
    assert [tuple(layer.weight.shape) for layer in linears] == [(4096, 7680), (4096, 4096)]


def test_small_is_about_150_million() -> None:
    assert 120e6 < num_parameters(build(preset("small.yaml"))) < 180e6
