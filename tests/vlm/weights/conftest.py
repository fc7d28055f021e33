"""A small random Mllama as transformers writes it, with its processor."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import (
    MllamaForConditionalGeneration,
    MllamaImageProcessor,
    MllamaProcessor,
    PreTrainedTokenizerFast,
)

from vlm.chat.processor import Processor

TILE_SIZE_PX = 28
IMAGE_MEAN = [0.4, 0.5, 0.6]
IMAGE_STD = [0.2, 0.3, 0.25]
END_ID = 65
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="session")
def mllama_source(
    make_mllama: Callable[..., MllamaForConditionalGeneration],
    processor: Processor,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder of transformers 5's layout: one weights file, `processor_config.json`. Read only.

    `<|image|>` is the first row behind the vocabulary, as in Llama 3.2; an answer also ends at a
    token that only `generation_config.json` names.
    """
    folder = tmp_path_factory.mktemp("transformers") / "mllama"
    tokenizer = processor.tokenizer
    ids = {
        "vocab_size": tokenizer.image_id,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eot_id,
        "pad_token_id": tokenizer.pad_id,
    }
    network = make_mllama(
        vision={"image_size": TILE_SIZE_PX}, text={**ids, "rope_parameters": LLAMA3_ROPE}
    )
    network.generation_config.eos_token_id = [tokenizer.eot_id, END_ID]
    network.save_pretrained(folder)
    tokenizer.save(folder)
    MllamaProcessor(
        MllamaImageProcessor(
            size={"height": TILE_SIZE_PX, "width": TILE_SIZE_PX},
            image_mean=IMAGE_MEAN,
            image_std=IMAGE_STD,
        ),
        PreTrainedTokenizerFast.from_pretrained(folder),
        chat_template=processor.template.source,
    ).save_pretrained(folder)
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
