"""The formula of FLOPs against torch's counter of what is really computed."""

import itertools
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data.collate import ChatBatch, collate_chats
from data.loader import LoaderState
from encoders.tiling import TiledImage
from training.config import MemoryConfig, TrainConfig
from training.flops import StepFlops
from training.memory import recompute_blocks
from training.objectives import NextToken
from training.rehearsal import ByShape, Rehearsal
from training.setup import Setup, build_setup
from training.speed import StepComparison
from training.stages import freeze, parts_of
from training.utilisation import peak_flops, peak_of
from vlm.config import PACKAGE_ROOT, VLMConfig, load_config
from vlm.inputs import Example, stack_examples
from vlm.model import VisionLanguageModel

MakeConfig = Callable[..., TrainConfig]


def stage_setup(config: TrainConfig) -> Setup:
    setup = build_setup(config)
    freeze(setup.stage, parts_of(setup.modules))
    return setup


def counted(objective: Any, batch: Any) -> tuple[float, float]:
    """What torch counts in the forward and in the backward pass.

    Attention as plain products: torch counts the fused kernels' own repetition of the forward pass.
    """
    found = []
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            loss = objective.loss(batch).total
        found.append(counter.get_total_flops())
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        found.append(counter.get_total_flops())
    return found[0], found[1]


# Products of no weight, which the formula leaves out, are below a thousandth.
CLOSE = 2e-3


def next_token(model: VisionLanguageModel) -> tuple[NextToken, dict[str, torch.nn.Module]]:
    names = ("encoder", "projector", "decoder")
    return NextToken(model), {name: getattr(model, name) for name in names}


@pytest.mark.parametrize("stage", ["text", "encoder", "align", "finetune"])
def test_the_formula_counts_what_torch_counts(
    stage: Any, stage_config: MakeConfig, tmp_path: Path
) -> None:
    setup = stage_setup(stage_config(stage, tmp_path / "out"))
    batch = next(setup.train.batches())
    flops = StepFlops(setup.modules).of(batch)
    forward, backward = counted(setup.objective, batch)
    assert flops.forward == pytest.approx(forward, rel=CLOSE)
    assert flops.backward == pytest.approx(backward, rel=CLOSE)
    assert flops.recomputed == 0 and flops.total == flops.model == flops.forward + flops.backward


@pytest.mark.parametrize("padding_tiles", ["drop", "attend"])
def test_pictures_of_any_tiles_are_counted_as_they_are_computed(padding_tiles: Any) -> None:
    sides = StepComparison("tiny", (1, 3, 4), padding_tiles, torch.device("cpu"), "float32")
    objective, modules = next_token(sides.ours)
    for packed in (sides.mixed, sides.pictures_only):
        # As rows of one document: on the CPU, packed ones take the whole square all the same.
        batch = replace(packed, inputs=replace(packed.inputs, document_lengths=None))
        flops = StepFlops(modules).of(batch)
        assert (flops.forward, flops.backward) == pytest.approx(
            counted(objective, batch), rel=CLOSE
        )


@pytest.mark.parametrize(
    ("name", "frozen"), [("small", ""), ("small", "decoder"), ("llama3_2_11b", "encoder")]
)
def test_large_shapes_are_counted_without_their_weights(name: str, frozen: str) -> None:
    config = load_config(VLMConfig, PACKAGE_ROOT / "configs" / "model" / f"{name}.yaml")
    rehearsal, cpu = Rehearsal(), torch.device("cpu")
    with rehearsal.making(cpu):
        objective, modules = next_token(VisionLanguageModel(config, config.decoder.vocab_size - 1))
    if frozen:
        modules[frozen].requires_grad_(False)
    batch = rehearsal.place(batch_of(config, [(200, 4), (100, 1), (50, 0)]), cpu)
    flops = StepFlops(modules).of(batch)
    with ByShape():
        forward, backward = counted(objective, batch)
    assert flops.forward == pytest.approx(forward, rel=CLOSE)
    assert flops.backward == pytest.approx(backward, rel=CLOSE)


def batch_of(config: VLMConfig, rows: list[tuple[int, int]]) -> ChatBatch:
    """Rows of so many tokens, behind a picture of so many tiles if any; half is supervised."""
    px = config.vision.tile_size_px
    examples = []
    for length, num_tiles in rows:
        ids = torch.ones(length, dtype=torch.int64)
        ids[0] = config.decoder.vocab_size - 1
        tiles = torch.zeros(num_tiles, 3, px, px, dtype=torch.uint8)
        images = (TiledImage(tiles, 1, (1, num_tiles)),) if num_tiles else ()
        examples.append(Example(ids, torch.arange(length) >= length // 2, images))
    mask = torch.nn.utils.rnn.pad_sequence([e.loss_mask for e in examples], batch_first=True)
    return ChatBatch(("a",), stack_examples(examples, 0), mask)


def test_packed_rows_are_counted_by_their_documents(finetune_setup: Setup) -> None:
    samples = itertools.islice(finetune_setup.train.sources[0].read_all(), 4)
    rows = [finetune_setup.train.reader.encode(raw, random.Random(0)) for raw in samples]
    cost = StepFlops(finetune_setup.modules)
    lengths = [length for row in rows for length in row.row_tokens]
    packed = collate_chats(rows, 0, sequence_tokens=sum(lengths))
    found = cost._chat(packed)
    assert found["text_pairs"] == sum(length**2 for length in lengths)
    assert found["text_tokens"] == sum(lengths) - 1


def test_recomputed_blocks_are_counted_again(stage_config: MakeConfig, tmp_path: Path) -> None:
    for stage, parts in (("finetune", ("encoder", "decoder")), ("align", ("decoder",))):
        setup = stage_setup(stage_config(stage, tmp_path / stage))
        setup.train.state = LoaderState.start(1)
        batch = next(setup.train.batches())
        plain = StepFlops(setup.modules).of(batch)
        config = MemoryConfig(recompute=parts, recompute_every=2)
        blocks = recompute_blocks(setup.modules, config)
        again = StepFlops(setup.modules, blocks).of(batch)
        assert again.model == plain.model and again.recomputed > 0.1 * plain.forward
        _, backward = counted(setup.objective, batch)
        assert again.backward + again.recomputed == pytest.approx(backward, rel=CLOSE)


ADAPTERS = {"rank": 4, "alpha": 4}


@pytest.mark.parametrize(
    "adapted",
    [("decoder",), ("cross_attention",), ("encoder", "projector"), ("decoder", "encoder")],
)
@pytest.mark.parametrize("recompute", [(), ("decoder",)])
def test_adapters_are_counted_and_frozen_weights_have_no_gradient(
    adapted: tuple[str, ...], recompute: Any, stage_config: MakeConfig, tmp_path: Path
) -> None:
    lora = dict.fromkeys(adapted, ADAPTERS)
    setup = stage_setup(stage_config("finetune", tmp_path / "out", lora=lora))
    batch = next(setup.train.batches())
    blocks = recompute_blocks(setup.modules, MemoryConfig(recompute=recompute))
    flops = StepFlops(setup.modules, blocks).of(batch)
    forward, backward = counted(setup.objective, batch)
    assert flops.forward == pytest.approx(forward, rel=CLOSE)
    assert flops.backward + flops.recomputed == pytest.approx(backward, rel=CLOSE)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA B200", 2.25e15),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce GTX 1080", None),
        ("NVIDIA A1000", None),
    ],
)
def test_peaks_are_found_by_the_names_that_torch_gives(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak


def test_a_cpu_has_no_peak() -> None:
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None
