"""A tiny real model and its processor, and transformers' Mllama, for the tests of every room."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from encoders.tiling import supported_canvases
from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.engine.engine import Engine, EngineConfig
from vlm.engine.request import Request
from vlm.engine.sampling import SamplingConfig
from vlm.inputs import Example, ModelInputs
from vlm.model import VisionLanguageModel
from vlm.weights.mllama import config_from_mllama
from vlm.weights.mllama_names import our_name

if TYPE_CHECKING:
    from transformers import MllamaForConditionalGeneration

if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has a core, and so what it starts
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Examples are found anew each time and never by a clock: machines that test may be busy.
hypothesis.settings.register_profile("vlm", deadline=None, database=None)
hypothesis.settings.load_profile("vlm")

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


@pytest.fixture(scope="session")
def greedy_tokens() -> Callable[..., list[list[int]]]:
    """`greedy_tokens(network, prompts, num_new, suppressed_ids=())`: what an engine writes."""

    def write(
        network: VisionLanguageModel,
        prompts: list[Example],
        num_new: int,
        suppressed_ids: tuple[int, ...] = (),
    ) -> list[list[int]]:
        longest = max(len(prompt.input_ids) for prompt in prompts)
        config = EngineConfig(slots=len(prompts), max_tokens=longest + num_new)
        engine = Engine(network, (), suppressed_ids, config)
        numbers = [engine.submit(Request.of(p, SamplingConfig(), num_new)) for p in prompts]
        written: dict[int, list[int]] = {number: [] for number in numbers}
        while engine.num_active or engine.num_waiting:
            for event in engine.step():
                assert event.token is not None, event
                written[event.request_id].append(event.token)
        return list(written.values())

    return write


@pytest.fixture
def tiny_model(tiny_config: VLMConfig, processor: Processor) -> VisionLanguageModel:
    """Fresh weights, the same in every test; the cross-attention gates are closed as at birth."""
    torch.manual_seed(0)
    return VisionLanguageModel(tiny_config, processor.tokenizer.image_id)


@pytest.fixture
def open_model(tiny_model: VisionLanguageModel) -> VisionLanguageModel:
    """The tiny model with every gate open and strong cross-attention, frozen.

    Without training a picture hardly moves the likeliest token; twenty times as strong it decides.
    Patches stronger than at birth keep pictures apart from each other.
    """
    for name, parameter in tiny_model.named_parameters():
        if "gate" in name.rpartition(".")[2]:
            torch.nn.init.ones_(parameter)
        elif name.endswith("cross_attn.o_proj.weight"):
            parameter.data.mul_(20)
        elif name == "encoder.patch_embedding.weight":
            parameter.data.mul_(3)
    return tiny_model.requires_grad_(False).eval()


@pytest.fixture(scope="session")
def make_mllama() -> Callable[..., MllamaForConditionalGeneration]:
    """`make_mllama(seed=0, vision={}, text={})`: a small Mllama, its sections changed as given.

    Every weight is drawn, gates too, so that whatever is computed shows in the logits.
    """

    def make(
        seed: int = 0, vision: Mapping[str, Any] = {}, text: Mapping[str, Any] = {}
    ) -> MllamaForConditionalGeneration:
        from transformers import MllamaConfig, MllamaForConditionalGeneration

        sizes = {**MLLAMA_VISION, **vision}
        num_states = 1 + len(sizes["intermediate_layers_indices"])
        canvases = [list(canvas) for canvas in supported_canvases(sizes["max_num_tiles"])]
        derived = {
            "vision_output_dim": sizes["hidden_size"] * num_states,
            "supported_aspect_ratios": canvases,
        }
        words = {**MLLAMA_TEXT, **text}
        cross = {"cross_attention_layers": list(range(3, words["num_hidden_layers"], 5))}
        config = MllamaConfig(
            vision_config={**sizes, **derived},
            text_config={**words, **cross},
            image_token_index=words["vocab_size"],
        )
        model = MllamaForConditionalGeneration(config).requires_grad_(False).eval()
        draw_weights(model, seed)
        model.generation_config.eos_token_id = None
        return model

    return make


@pytest.fixture(scope="session")
def ours_of() -> Callable[[MllamaForConditionalGeneration], VisionLanguageModel]:
    """Our model with the configuration and the weights of a Mllama."""

    def copy(theirs: MllamaForConditionalGeneration) -> VisionLanguageModel:
        config = config_from_mllama(theirs.config.to_dict())
        model = VisionLanguageModel(config, theirs.config.image_token_index)
        state = {our_name(name): tensor for name, tensor in theirs.state_dict().items()}
        model.load_state_dict(state)
        return model.requires_grad_(False).eval()

    return copy


@pytest.fixture(scope="session")
def mllama_source(
    make_mllama: Callable[..., MllamaForConditionalGeneration],
    processor: Processor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A Mllama folder as transformers 5 writes it, with its processor. To be read only.

    Tiles of 28 px. `<|image|>` is the first row behind the vocabulary, as in Llama 3.2; an answer
    also ends at a token that only `generation_config.json` names.
    """
    from transformers import MllamaImageProcessor, MllamaProcessor, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("transformers") / "mllama"
    tokenizer = processor.tokenizer
    text = {
        "vocab_size": tokenizer.image_id,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eot_id,
        "pad_token_id": tokenizer.pad_id,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    }
    network = make_mllama(text=text)
    network.generation_config.eos_token_id = [tokenizer.eot_id, tokenizer.eot_id - 10]
    network.save_pretrained(folder)
    tokenizer.save(folder)
    image_processor = MllamaImageProcessor(
        size={"height": 28, "width": 28}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25]
    )
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    template = processor.template.source
    MllamaProcessor(image_processor, theirs, chat_template=template).save_pretrained(folder)
    return folder


@pytest.fixture
def mllama_folder(mllama_source: Path, tmp_path: Path) -> Path:
    """A copy of `mllama_source` that a test may change."""
    return shutil.copytree(mllama_source, tmp_path / "mllama")


@pytest.fixture(scope="session")
def mllama_inputs() -> Callable[[VisionLanguageModel, ModelInputs], dict[str, Tensor]]:
    """Our batch as transformers' processor would give it, with pixels normalised as ours are."""
    return to_mllama_inputs


MLLAMA_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "attention_heads": 2,
    "num_hidden_layers": 3,
    "num_global_layers": 2,
    "image_size": 28,
    "patch_size": 14,
    "max_num_tiles": 4,
    "intermediate_layers_indices": [0, 2],
}
MLLAMA_TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 9,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def draw_weights(model: nn.Module, seed: int) -> None:
    """Matrices keep variance, embeddings have it, norms are near 1, gates and biases are open."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            drawn = 1 + 0.2 * drawn
        elif parameter.dim() == 1:
            drawn = 0.5 * drawn + (0.5 if "gate" in name else 0.0)
        elif "embed" not in name:
            drawn = drawn * parameter[0].numel() ** -0.5
        parameter.data.copy_(drawn)


def to_mllama_inputs(model: VisionLanguageModel, inputs: ModelInputs) -> dict[str, Tensor]:
    """The batch for `MllamaForConditionalGeneration`, its masks made by transformers' functions."""
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    width = inputs.input_ids.shape[1]
    lengths = inputs.lengths.tolist()
    batch = {
        "input_ids": inputs.input_ids,
        "attention_mask": (torch.arange(width) < inputs.lengths.unsqueeze(1)).long(),
    }
    if inputs.images is None:
        return batch
    images, limit = inputs.images, model.config.vision.max_num_tiles
    shown = images.image_index.split(images.num_images.tolist())
    counts = [images.num_tiles[row].tolist() for row in shown]
    tiles = model.encoder._normalise(images.pixels).split(images.num_tiles.tolist())
    shape = len(lengths), int(images.num_images.max()), limit
    pixels = torch.zeros(*shape, *tiles[0].shape[1:])
    ids = torch.zeros(shape[:2], dtype=torch.int64)
    tile_mask = torch.zeros(shape, dtype=torch.int64)
    tile_mask[:, :, 0] = 1  # transformers gives images that are not there a first tile
    for row, indices in enumerate(shown):
        for place, index in enumerate(indices.tolist()):
            pixels[row, place, : len(tiles[index])] = tiles[index]
            ids[row, place] = images.aspect_ratio_ids[index]
            tile_mask[row, place, : len(tiles[index])] = 1
    spans = [
        get_cross_attention_token_mask(row[:length].tolist(), model.image_token_id)
        for row, length in zip(inputs.input_ids, lengths, strict=True)
    ]
    mask = convert_sparse_cross_attention_mask_to_dense(spans, counts, limit, width)
    return {
        **batch,
        "pixel_values": pixels,
        "aspect_ratio_ids": ids,
        "aspect_ratio_mask": tile_mask,
        "cross_attention_mask": torch.from_numpy(mask),
    }
