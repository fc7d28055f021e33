"""What `--dry-run` says: parts, memory, the first batch; and that it leaves no trace."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from training.config import StageName, TrainConfig
from training.dry_run import describe_run
from training.run import build_setup, describe_parts
from training.stages import STAGES

MakeConfig = Callable[..., TrainConfig]


@pytest.mark.parametrize("stage", STAGES)
def test_a_dry_run_shows_parts_data_memory_and_batch_and_writes_nothing(
    stage: StageName, stage_config: MakeConfig, tmp_path: Path
) -> None:
    config = stage_config(stage, tmp_path / "out", batches_per_step=2)
    text = describe_run(config)
    assert text.startswith(describe_parts(build_setup(config)))
    assert "data: 12 samples in 3 shards; 3 steps of 2 batch(es)\n" in text
    assert re.search(r"memory: weights \d+ MB, gradients \d+ MB, optimizer \d+ MB, activ", text)
    assert f"first batch: 4 samples in {4 if stage == 'encoder' else 16} rows, " in text
    assert ("no pictures" in text) == (stage == "text")
    assert list(tmp_path.iterdir()) == []


def test_the_first_row_is_shown_with_its_supervised_text_marked(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    config = stage_config("finetune", tmp_path / "out")
    text = describe_run(config)
    torch.manual_seed(config.seed)
    batch = next(build_setup(config).train.batches())
    assert f"first row ({batch.keys[0]}), supervised text in [[ ]]:" in text
    row = text.splitlines()[-1]
    (supervised,) = re.findall(r"\[\[(.*?)\]\]", row)
    assert supervised.endswith("<|eot_id|>") and len(supervised) > len("<|eot_id|>")
    asked, _, _ = row.partition("[[")
    assert "<|image|>" in asked and asked.endswith(
        "<|start_header_id|>assistant<|end_header_id|>\\n\\n"
    )


def test_everything_is_supervised_in_text_training(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    row = describe_run(stage_config("text", tmp_path / "out")).splitlines()[-1]
    # The first token has nothing that it could be predicted from.
    assert row.startswith("  <|begin_of_text|>[[") and row.count("[[") == 1


def test_padding_and_pictures_of_the_first_batch_are_counted(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    config = stage_config("align", tmp_path / "out")
    batch = next(build_setup(config).train.batches())
    lengths = batch.inputs.lengths
    padding = 100 * (1 - int(lengths.sum()) / (len(lengths) * int(lengths.max())))
    tiles = len(batch.inputs.images.pixels)
    expected = f"{int(lengths.sum())} text tokens, {padding:.0f} % padding, 4 pictures in {tiles}"
    assert expected in describe_run(config)


def test_a_packed_first_row_is_counted_in_documents(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    data = {"packing": True, "max_tokens": 200}
    text = describe_run(stage_config("finetune", tmp_path / "out", data=data))
    found = re.search(r"4 samples in (\d+) rows, .*first row \((\d+) packed doc", text, re.DOTALL)
    assert found is not None
    num_rows, num_documents = map(int, found.groups())
    row = text.splitlines()[-1]
    assert num_rows < 16  # as many documents
    assert num_documents > 1 and 1 <= row.count("<|begin_of_text|>") <= num_documents


def test_the_memory_of_frozen_parts_counts_once_and_of_trained_parts_four_times(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    plain = stage_config("text", tmp_path / "out").model.model_dump()
    # Wide enough for whole megabytes: 2 x 40,000 x 64 embeddings and outputs of four bytes.
    plain["decoder"] |= {"vocab_size": 40_000, "hidden_size": 64}
    text = describe_run(stage_config("text", tmp_path / "out", model=plain))
    weights, gradients, optimizer, activations, together = map(int, re.findall(r"(\d+) MB", text))
    assert 20 <= gradients <= weights <= gradients + 1
    assert abs(optimizer - 2 * gradients) <= 1
    assert activations > 0
    assert abs(together - (weights + gradients + optimizer + activations)) <= 2
