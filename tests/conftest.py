"""A tiny real model and its processor, shared by the tests of every room."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.model import VisionLanguageModel

VOCAB_SIZE = 300
SENTENCES = (
    "How many red circles are there? Two.",
    "What colour is the large square? It is blue.",
    "Is a green triangle left of the circle? Yes, it is.",
    "Describe the image. A small yellow circle above a red square.",
)


@pytest.fixture(scope="session")
def tiny_config() -> VLMConfig:
    """Two intermediate states, two cross-attention layers (3 and 8), grouped queries."""
    return VLMConfig.model_validate(
        {
            "vision": {
                "tile_size_px": 16,
                "patch_size_px": 8,
                "max_num_tiles": 4,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_heads": 2,
                "num_local_layers": 3,
                "num_global_layers": 1,
                "intermediate_layers": [1, 2],
            },
            "projector": {},
            "decoder": {
                "vocab_size": VOCAB_SIZE,
                "hidden_size": 32,
                "intermediate_size": 48,
                "num_layers": 9,
                "num_heads": 4,
                "num_kv_heads": 2,
                "max_positions": 256,
            },
        }
    )


@pytest.fixture(scope="session")
def processor(tiny_config: VLMConfig) -> Processor:
    """A tokenizer trained on a few sentences, with Llama 3's template."""
    return Processor.train(SENTENCES * 8, tiny_config.vision, VOCAB_SIZE)


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """`picture(seed, width_px=16, height_px=16)`: an RGB picture of noise; 16 px are one tile."""

    def make(seed: int, width_px: int = 16, height_px: int = 16) -> Image.Image:
        shape = height_px, width_px, 3
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))

    return make


@pytest.fixture
def tiny_model(tiny_config: VLMConfig, processor: Processor) -> VisionLanguageModel:
    """Fresh weights, the same in every test; the cross-attention gates are closed as at birth."""
    torch.manual_seed(0)
    return VisionLanguageModel(tiny_config, processor.tokenizer.image_id)


@pytest.fixture
def open_model(tiny_model: VisionLanguageModel) -> VisionLanguageModel:
    """The tiny model with every gate open and strong cross-attention, frozen.

    Without training a picture hardly moves the likeliest token; twenty times as strong it decides.
    """
    for name, parameter in tiny_model.named_parameters():
        if "gate" in name.rpartition(".")[2]:
            torch.nn.init.ones_(parameter)
        elif name.endswith("cross_attn.o_proj.weight"):
            parameter.data.mul_(20)
    return tiny_model.requires_grad_(False).eval()
