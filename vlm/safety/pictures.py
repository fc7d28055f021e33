"""Pictures by an image classifier of timm, read from a folder.

It is as good as what it was trained on. Its labels are judged one picture at a time, at the size
that it was trained for, so that what is small in a large picture may be lost. It reads no text, in
the conversation or in the picture.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vlm.errors import UserError
from vlm.safety.classifier import Content

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


class PictureClassifier:
    """The probability of labels, summed by category; of several pictures the largest.

    Args:
        categories: the network's outputs that each category has.
        transform: an RGB picture to the network's input, (3, H, W) float32.
    """

    def __init__(
        self, network: nn.Module, transform: Any, categories: Mapping[str, Sequence[int]]
    ) -> None:
        self._network = network.eval().requires_grad_(False)
        self._transform = transform
        self._categories = categories

    @classmethod
    def from_folder(
        cls, folder: str, categories: Mapping[str, Sequence[str]], device: str = "cpu"
    ) -> "PictureClassifier":
        """Read a folder as timm writes it for the hub; nothing is downloaded.

        Args:
            folder: has `config.json`, with label names, and `model.safetensors`.
            categories: for each category, the labels that belong to it.
        Raises:
            UserError: a file is missing or damaged, or a label is none of the classifier's.
        """
        config = _read_config(Path(folder))
        labels = config.get("label_names") or config.get("pretrained_cfg", {}).get("label_names")
        if not isinstance(labels, list) or not labels:
            raise UserError(f"{folder}/{CONFIG_FILE} has no label_names: what its outputs mean")
        for category, names in categories.items():
            unknown = [name for name in names if name not in labels]
            if unknown or not names:
                wrong = f"has the label {unknown[0]!r}" if unknown else "has no labels"
                raise UserError(
                    f"category {category!r} {wrong}; the classifier in {folder} has "
                    f"{', '.join(map(str, labels[:8]))}"
                )
        from timm.data.config import resolve_data_config
        from timm.data.transforms_factory import create_transform

        network = _read_network(Path(folder), config, len(labels))
        settings = resolve_data_config(  # type: ignore[no-untyped-call]
            config.get("pretrained_cfg", {}), model=network
        )
        transform = create_transform(**settings, is_training=False)
        outputs = {c: [labels.index(name) for name in names] for c, names in categories.items()}
        return cls(network.to(torch.device(device)), transform, outputs)

    @torch.inference_mode()
    def classify(self, content: Content) -> Mapping[str, float]:
        """Return the score of each category; text is not looked at."""
        if not content.pictures:
            return {}
        device = next(self._network.parameters()).device
        batch = torch.stack([self._input(picture) for picture in content.pictures])
        probabilities = self._network(batch.to(device)).float().softmax(dim=-1).cpu()
        return {
            category: min(float(probabilities[:, outputs].sum(dim=-1).max()), 1.0)
            for category, outputs in self._categories.items()
        }

    def _input(self, picture: Image.Image) -> Tensor:
        found: Tensor = self._transform(picture)
        return found


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(config, dict) or "architecture" not in config:
        raise UserError(f"{path} has no architecture; needed is a folder that timm wrote")
    return config


def _read_network(folder: Path, config: Mapping[str, Any], num_labels: int) -> nn.Module:
    import timm  # takes seconds, and few policies have this classifier

    name, arguments = str(config["architecture"]), dict(config.get("model_args", {}))
    if not timm.is_model(name):
        raise UserError(f"{folder}: timm has no architecture {name!r}")
    network = timm.create_model(name, pretrained=False, **{**arguments, "num_classes": num_labels})
    try:
        network.load_state_dict(load_file(folder / WEIGHTS_FILE))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder / WEIGHTS_FILE} does not fit {name}: {reason}") from error
    found: nn.Module = network
    return found
