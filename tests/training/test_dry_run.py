"""What `--dry-run` says: parts, memory, the first batch; and that it leaves no trace."""

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.config import StageName, TrainConfig
from training.dry_run import describe_run, make_plan
from training.setup import build_setup, describe_parts
from training.stages import STAGES
from vlm.chat.processor import Processor
from vlm.config import PACKAGE_ROOT, VLMConfig, load_config
from vlm.errors import UserError
from vlm.model import tensor_shapes
from vlm.weights.folder import FORMAT, FolderConfig

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


def test_the_memory_of_trained_parts_counts_four_times(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    plain = stage_config("text", tmp_path / "out").model.model_dump()
    # Wide enough for whole megabytes: 2 x 40,000 x 64 embeddings and outputs of four bytes.
    plain["decoder"] |= {"vocab_size": 40_000, "hidden_size": 64}
    text = describe_run(stage_config("text", tmp_path / "out", model=plain))
    weights, gradients, optimizer, activations, peak, copied, sharded = map(
        int, re.findall(r"(\d+) MB", text)
    )
    assert 20 <= gradients <= weights <= gradients + 1
    assert abs(optimizer - 2 * gradients) <= 1
    assert activations > 0
    # The output layer's gradient appears while the logits are still there, the rest comes later.
    together = weights + gradients + optimizer
    assert together - 2 <= peak <= together + 2.5 * activations
    assert abs(copied - peak - gradients) <= 1 and sharded < peak


def test_operations_are_shown_and_recomputed_ones_apart(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    plain = describe_run(stage_config("finetune", tmp_path / "out"))
    memory = {"recompute": ["encoder", "decoder"]}
    again = describe_run(stage_config("finetune", tmp_path / "out", memory=memory))
    shown = r"operations: [\d.]+ \wFLOP a step: [\d.]+ \wFLOP forward, [\d.]+ \wFLOP backward"
    assert re.search(shown + "\n", plain)
    assert re.search(shown + r", [\d.]+ \wFLOP recomputed\n", again)


def test_a_parents_tensors_are_checked_though_none_is_read(
    stage_config: MakeConfig, parents: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(parents / "align", tmp_path / "align")
    tensors = load_file(folder / "model.safetensors")
    del tensors["decoder.norm.weight"]
    save_file(tensors, folder / "model.safetensors")
    config = stage_config("finetune", tmp_path / "out", init_from={"model": folder})
    with pytest.raises(UserError, match=r"norm\.weight is missing"):
        describe_run(config)


@pytest.mark.slow
def test_the_11b_can_be_described_without_its_weights(
    processor: Processor, shards: Path, tmp_path: Path
) -> None:
    """Its parent's tensors are a hole in a file: 43 GB that take no room on the disk."""
    model = load_config(VLMConfig, PACKAGE_ROOT / "configs" / "model" / "llama3_2_11b.yaml")
    parent = tmp_path / "align"
    parent.mkdir()
    write_holes(parent, tensor_shapes(model))
    processor.save(parent)
    written = FolderConfig(
        format=FORMAT,
        stage="align",
        components=("encoder", "projector", "decoder"),
        model=model,
    )
    (parent / "config.json").write_text(written.model_dump_json())
    config = TrainConfig.model_validate(
        {
            "stage": "finetune",
            "out": tmp_path / "out",
            "model": model.model_dump(),
            "init_from": {"model": parent},
            "data": {"train": [shards / "train"], "batch_samples": 2, "max_tokens": 512},
            "optim": {"learning_rate": 1e-5, "warmup_steps": 1},
            "memory": {"recompute": ["encoder", "decoder"]},
            "precision": "bf16",
            "steps": 1,
            "device": "cpu",
        }
    )
    plan = make_plan(config)
    parameters = sum(math.prod(shape) for shape in tensor_shapes(model).values())
    assert 10.6e9 < parameters < 10.8e9
    assert plan.memory.weights == plan.memory.gradients == 4 * parameters
    assert plan.memory.optimizer == pytest.approx(2 * 4 * parameters, rel=1e-3)
    together = plan.memory.weights + plan.memory.gradients + plan.memory.optimizer
    assert together < plan.memory.peak < 1.1 * together
    assert plan.memory.on_each_of(8, sharded=True) < 80e9  # it trains on eight GPUs of 80 GB
    assert plan.flops.backward == pytest.approx(2 * plan.flops.forward, rel=0.01)
    assert list(tmp_path.iterdir()) == [parent]


def write_holes(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Safetensors files of float32 zeros that were never written, up to 4 GB each."""
    files: list[dict[str, Any]] = []
    ends: list[int] = []
    for name, shape in shapes.items():
        num_bytes = 4 * math.prod(shape)
        if not files or ends[-1] + num_bytes > 4e9:
            files.append({})
            ends.append(0)
        place = [ends[-1], ends[-1] + num_bytes]
        files[-1][name] = {"dtype": "F32", "shape": list(shape), "data_offsets": place}
        ends[-1] += num_bytes
    where = {}
    for index, (header, end) in enumerate(zip(files, ends, strict=True)):
        path = folder / f"model-{index}.safetensors"
        where |= dict.fromkeys(header, path.name)
        text = json.dumps(header).encode()
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
