"""A saved base, and adapters on it that nothing was trained for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlm.adapters.config import LoraConfig
from vlm.adapters.folder import AdapterConfig, save_adapter
from vlm.adapters.layers import adapter_shapes
from vlm.chat.processor import Processor
from vlm.model import VisionLanguageModel
from vlm.weights.folder import FORMAT, FolderConfig, read_folder_config, save_folder

LORA = LoraConfig.model_validate(
    {"decoder": {"rank": 2, "alpha": 1}, "cross_attention": {"rank": 1, "alpha": 3}}
)


@pytest.fixture
def base(tmp_path: Path, open_model: VisionLanguageModel, processor: Processor) -> Path:
    """The tiny model with open gates in a folder of ours."""
    components = ("encoder", "projector", "decoder")
    config = FolderConfig(
        format=FORMAT, stage="align", components=components, model=open_model.config
    )
    modules = {name: open_model.get_submodule(name) for name in components}
    folder = tmp_path / "models" / "base"
    save_folder(folder, config, modules, processor, {"stage": "align", "seed": 1, "commit": None})
    return folder


@pytest.fixture
def write_adapter() -> Callable[..., dict[str, Tensor]]:
    """`write_adapter(folder, base, lora=LORA)` writes a random adapter; returns its tensors."""

    def write(folder: Path, base: Path, lora: LoraConfig = LORA) -> dict[str, Tensor]:
        model = read_folder_config(base).model
        with torch.device("meta"):
            shell = VisionLanguageModel(model, image_token_id=0)
        generator = torch.Generator().manual_seed(0)
        tensors = {
            name: 0.2 * torch.randn(shape, generator=generator)
            for name, shape in adapter_shapes(shell, lora).items()
        }
        provenance: dict[str, Any] = {"stage": "finetune", "seed": 7, "commit": None}
        save_adapter(folder, AdapterConfig.on(base, lora), model, tensors, provenance)
        return tensors

    return write
