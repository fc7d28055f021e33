"""A small random Mllama as transformers writes it, with its processor."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    MllamaConfig,
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    MllamaProcessor,
    PreTrainedTokenizerFast,
)

from vlm.chat.processor import Processor

TILE_SIZE_PX = 28
IMAGE_MEAN = (0.4, 0.5, 0.6)
IMAGE_STD = (0.2, 0.3, 0.25)


def mllama_config(processor: Processor) -> MllamaConfig:
    """Two cross-attention layers, grouped queries; `<|image|>` is the first row behind the
    vocabulary, as in Llama 3.2."""
    tokenizer = processor.tokenizer
    return MllamaConfig(
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_global_layers": 1,
            "attention_heads": 2,
            "image_size": TILE_SIZE_PX,
            "patch_size": 14,
            "intermediate_layers_indices": [0, 2],
            "vision_output_dim": 48,
        },
        text_config={
            "vocab_size": tokenizer.image_id,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 9,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "cross_attention_layers": [3, 8],
            "max_position_embeddings": 256,
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
        },
        image_token_index=tokenizer.image_id,
    )


@pytest.fixture(scope="session")
def mllama_source(processor: Processor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of transformers 5's layout: one weights file, `processor_config.json`. Read only."""
    folder = tmp_path_factory.mktemp("transformers") / "mllama"
    torch.manual_seed(0)
    network = MllamaForConditionalGeneration(mllama_config(processor))
    for parameter in network.parameters():  # gates and norms too: nothing is 0 or 1
        parameter.data.normal_(std=0.3)
    network.generation_config.eos_token_id = [processor.tokenizer.eot_id, 65]
    network.save_pretrained(folder)
    processor.tokenizer.save(folder)
    image_processor = MllamaImageProcessor(
        size={"height": TILE_SIZE_PX, "width": TILE_SIZE_PX},
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    template = processor.template.source
    MllamaProcessor(image_processor, tokenizer, chat_template=template).save_pretrained(folder)
    return folder


@pytest.fixture
def mllama_folder(mllama_source: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return shutil.copytree(mllama_source, tmp_path / "mllama")


@pytest.fixture(scope="session")
def reshard() -> Callable[[Path, str], None]:
    """`reshard(folder, "20KB")`: write the weights again, as several files and an index."""

    def write(folder: Path, max_shard_size: str) -> None:
        network = MllamaForConditionalGeneration.from_pretrained(folder, dtype="auto")
        (folder / "model.safetensors").unlink()
        network.save_pretrained(folder, max_shard_size=max_shard_size)

    return write
