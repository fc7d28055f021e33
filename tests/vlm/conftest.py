"""A folder of the tiny model whose answers depend on pictures."""

from pathlib import Path

import pytest
import torch

from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.model import VisionLanguageModel
from vlm.weights.folder import FORMAT, FolderConfig, save_folder


@pytest.fixture(scope="session")
def open_model_folder(
    tiny_config: VLMConfig, processor: Processor, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model folder called `finetune`, gates open and cross-attention strong. To be read only."""
    torch.manual_seed(0)
    network = VisionLanguageModel(tiny_config, processor.tokenizer.image_id)
    for name, parameter in network.named_parameters():
        if "gate" in name.rpartition(".")[2]:
            torch.nn.init.ones_(parameter)
        elif name.endswith("cross_attn.o_proj.weight"):
            parameter.data.mul_(20)
        elif name == "encoder.patch_embedding.weight":
            parameter.data.mul_(3)
    components = {name: getattr(network, name) for name in ("encoder", "projector", "decoder")}
    described = FolderConfig(
        format=FORMAT, stage="finetune", components=tuple(components), model=tiny_config
    )
    folder = tmp_path_factory.mktemp("models") / "finetune"
    save_folder(folder, described, components, processor, {})
    return folder
