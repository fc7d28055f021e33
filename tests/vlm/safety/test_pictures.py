"""Picture classifiers from a folder of timm."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from vlm.errors import UserError
from vlm.safety.classifier import Content
from vlm.safety.pictures import PictureClassifier

ARCHITECTURE = "vit_tiny_patch16_224"
ARGUMENTS: dict[str, Any] = {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2}
LABELS = ["plain", "weapon", "blood"]


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    """Random but for the head, whose outputs differ strongly."""
    torch.manual_seed(0)
    made: Any = timm.create_model(ARCHITECTURE, num_classes=len(LABELS), **ARGUMENTS)
    made.head.weight.data.normal_(std=0.3)
    found: torch.nn.Module = made.eval()
    return found


@pytest.fixture
def folder(network: torch.nn.Module, tmp_path: Path) -> Path:
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": len(LABELS),
        "model_args": ARGUMENTS,
        "label_names": LABELS,
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.3, 0.4],
            "interpolation": "bicubic",
            "crop_pct": 1.0,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    return tmp_path


CATEGORIES = {"violence": ["weapon", "blood"], "plain": ["plain"]}


def test_scores_are_the_networks_probabilities_and_the_worst_picture_counts(
    network: torch.nn.Module, folder: Path, picture: Callable[..., Image.Image]
) -> None:
    classifier = PictureClassifier.from_folder(str(folder), CATEGORIES)
    pictures = [picture(seed, 32, 32) for seed in range(4)]
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    expected = []
    for one in pictures:
        pixels = torch.frombuffer(bytearray(one.tobytes()), dtype=torch.uint8).view(32, 32, 3)
        values = ((pixels / 255 - mean) / std).permute(2, 0, 1)[None]
        with torch.inference_mode():
            chances = network(values).softmax(-1)[0]
        expected.append(float(chances[1] + chances[2]))
        # One picture and four go through other kernels: rounding.
        alone = classifier.classify(Content("text is not looked at", [one]))
        assert alone["violence"] == pytest.approx(expected[-1], abs=1e-5)
        assert alone["plain"] == pytest.approx(1 - expected[-1], abs=1e-5)
    together = classifier.classify(Content("", pictures))
    assert together["violence"] == pytest.approx(max(expected), abs=1e-5)
    assert max(expected) - min(expected) > 0.01
    assert classifier.classify(Content("no picture")) == {}


def test_a_folder_that_does_not_fit_is_refused(folder: Path) -> None:
    def refused(message: str, **changes: Any) -> None:
        path = folder / "config.json"
        before = path.read_text()
        path.write_text(json.dumps({**json.loads(before), **changes}))
        with pytest.raises(UserError, match=message):
            PictureClassifier.from_folder(str(folder), CATEGORIES)
        path.write_text(before)

    refused("does not fit", model_args={**ARGUMENTS, "depth": 2})
    refused("no architecture 'nothing'", architecture="nothing")
    refused("no label_names", label_names=None)
    refused("'weapon'.*has plain, fire", label_names=["plain", "fire", "blood"])
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        PictureClassifier.from_folder(str(folder), CATEGORIES)
    with pytest.raises(UserError, match="has no labels"):
        PictureClassifier.from_folder(str(folder), {"violence": []})
    with pytest.raises(UserError, match="cannot be read"):
        PictureClassifier.from_folder(str(folder / "nowhere"), CATEGORIES)
