"""A tiny random model in a folder, whose answers make no sense but depend on the picture."""

from pathlib import Path

import pytest
import torch

import vlm
from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.model import VisionLanguageModel
from vlm.weights.folder import FORMAT, FolderConfig, save_folder

CONFIG = VLMConfig.model_validate(
    {
        "vision": {
            "tile_size_px": 24,
            "patch_size_px": 12,
            "max_num_tiles": 4,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "num_local_layers": 1,
            "num_global_layers": 1,
            "intermediate_layers": [0],
        },
        "projector": {},
        "decoder": {
            "vocab_size": 300,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_layers": 4,
            "num_heads": 2,
            "num_kv_heads": 1,
            "max_positions": 8192,
        },
    }
)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    processor = Processor.train(["how many circles are there?"] * 4, CONFIG.vision, 300)
    network = VisionLanguageModel(CONFIG, processor.tokenizer.image_id)
    for name, parameter in network.named_parameters():
        if name.endswith("_gate"):
            torch.nn.init.ones_(parameter)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    components = {name: getattr(network, name) for name in ("encoder", "projector", "decoder")}
    described = FolderConfig(
        format=FORMAT, stage="finetune", components=tuple(components), model=CONFIG
    )
    provenance = {"stage": "finetune", "seed": 5, "commit": "c0ffee"}
    save_folder(folder, described, components, processor, provenance)
    return folder


@pytest.fixture(scope="session")
def model(model_folder: Path) -> vlm.Model:
    return vlm.load(model_folder, device="cpu")
