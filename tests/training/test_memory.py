"""Recomputed blocks give the same gradients to the bit and keep less; frozen parts keep nothing."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.loader import LoaderState
from training.config import MemoryConfig, TrainConfig
from training.memory import blocks_of, recompute_blocks
from training.run import run_identity, train_stage
from training.setup import Setup, build_setup
from training.stages import freeze, parts_of
from vlm.errors import UserError
from vlm.weights.folder import read_component

MakeConfig = Callable[..., TrainConfig]
BOTH = ("encoder", "decoder")


def stage_setup(config: TrainConfig) -> Setup:
    torch.manual_seed(0)
    setup = build_setup(config)
    freeze(setup.stage, parts_of(setup.modules))
    for module in setup.modules.values():
        for name, parameter in module.named_parameters():
            if "gate" in name.rpartition(".")[2]:  # a closed gate would hide what lies behind it
                torch.nn.init.constant_(parameter, 0.5)
    return setup


def first_batch(setup: Setup) -> Any:
    setup.train.state = LoaderState.start(1)
    return next(setup.train.batches())


def gradients_and_kept(setup: Setup) -> tuple[dict[str, Tensor], int]:
    """Gradients by name, and the bytes that the backward pass needs beside the weights."""
    named = {
        f"{component}.{name}": parameter
        for component, module in setup.modules.items()
        for name, parameter in module.named_parameters()
    }
    weights = {parameter.data_ptr() for parameter in named.values()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = first_batch(setup)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = setup.objective.loss(batch).total
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {n: p.grad.clone() for n, p in named.items() if p.grad is not None}
    for parameter in named.values():
        parameter.grad = None
    return gradients, sum(kept.values())


def assert_equal_to_the_bit(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys() and one
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize(
    ("stage", "parts"),
    [("finetune", BOTH), ("align", ("decoder",)), ("text", ("decoder",)), ("encoder", BOTH[:1])],
)
def test_recomputing_changes_no_bit_and_keeps_less(
    stage: Any, parts: Any, every: int, stage_config: MakeConfig, tmp_path: Path
) -> None:
    setup = stage_setup(stage_config(stage, tmp_path / "out"))
    names = {part: list(module.state_dict()) for part, module in setup.modules.items()}
    plain, plain_bytes = gradients_and_kept(setup)
    chosen = recompute_blocks(setup.modules, MemoryConfig(recompute=parts, recompute_every=every))
    assert len(chosen) == sum(-(-len(blocks_of(setup.modules[p])) // every) for p in parts)
    again, again_bytes = gradients_and_kept(setup)
    assert_equal_to_the_bit(plain, again)
    assert {part: list(module.state_dict()) for part, module in setup.modules.items()} == names
    # What a block keeps for itself is many times its input; the loss and embeddings keep theirs.
    assert again_bytes < (0.8 if every == 1 else 0.95) * plain_bytes


def test_a_run_that_recomputes_ends_with_the_same_weights(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    ends = []
    for name, memory in (("plain", {}), ("again", {"recompute": BOTH})):
        train_stage(stage_config("finetune", tmp_path / name, memory=memory))
        ends.append(read_component(tmp_path / name, "decoder"))
    assert_equal_to_the_bit(*ends)


def test_a_run_may_be_resumed_with_other_blocks_recomputed(
    finetune_setup: Setup, stage_config: MakeConfig, tmp_path: Path
) -> None:
    assert "memory" not in run_identity(finetune_setup)


def test_a_frozen_encoder_keeps_nothing_for_the_backward_pass(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    setup = stage_setup(stage_config("align", tmp_path / "out"))
    images = first_batch(setup).inputs.images
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        features = setup.modules["encoder"](
            images.pixels, images.num_tiles, images.aspect_ratio_ids
        )
    assert kept == [] and not features.requires_grad
    gradients, _ = gradients_and_kept(setup)
    assert {name.partition(".")[0] for name in gradients} == {"projector", "decoder"}


@pytest.mark.parametrize(
    ("stage", "named"),
    [("align", "memory.recompute names encoder, which"), ("text", "this stage has decoder")],
)
def test_recomputing_what_keeps_nothing_is_refused(
    stage: Any, named: str, stage_config: MakeConfig, tmp_path: Path
) -> None:
    setup = stage_setup(stage_config(stage, tmp_path / "out"))
    with pytest.raises(UserError, match=named):
        recompute_blocks(setup.modules, MemoryConfig(recompute=("encoder",)))


def test_a_part_is_named_once() -> None:
    with pytest.raises(ValueError, match="names a part twice"):
        MemoryConfig(recompute=("decoder", "decoder"))
