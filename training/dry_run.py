"""What a run would do: its parts, its memory and operations, its first batch."""

from dataclasses import dataclass
from functools import partial

import torch

from data.collate import ChatBatch, PairBatch
from training.config import TrainConfig
from training.flops import Flops, StepFlops
from training.memory import recompute_blocks
from training.optim import build_optimizer
from training.rehearsal import Rehearsal, StepMemory
from training.setup import Setup, build_accelerator, build_setup, describe_parts
from training.stages import freeze, parts_of
from vlm.inputs import ImageInputs

SHOWN_TOKENS = 120
SHOWN_DEVICES = 8


@dataclass(frozen=True)
class Plan:
    """What is known of a run before it starts.

    batch: the first one.
    memory: of a step of such batches, on one device.
    flops: of such a step.
    """

    setup: Setup
    batch: ChatBatch | PairBatch
    memory: StepMemory
    flops: Flops


def describe_run(config: TrainConfig) -> str:
    """Return the parts trained and frozen, memory, operations and the first batch, as text.

    What the run starts from is checked by the headers of its files, and the first batch is read as
    in the run itself. No weights are made, so a model of any size can be described anywhere.
    """
    plan = make_plan(config)
    loader = plan.setup.train
    num_shards = sum(len(source.num_samples) for source in loader.sources)
    lines = [
        describe_parts(plan.setup),
        f"data: {loader.order.num_samples:,} samples in {num_shards} shards; "
        f"{config.steps:,} steps of {loader.order.num_streams} batch(es)",
        _describe_memory(plan.memory),
        _describe_flops(plan.flops),
        _describe_batch(plan.setup, plan.batch),
    ]
    return "\n".join(lines)


def make_plan(config: TrainConfig) -> Plan:
    """Build a run without weights, and rehearse a step of batches like the first."""
    torch.manual_seed(config.seed)
    accelerator = build_accelerator(config)
    rehearsal = Rehearsal()
    setup = build_setup(config, partial(rehearsal.making, accelerator.device))
    parts = parts_of(setup.modules)
    freeze(setup.stage, parts)
    recomputed = recompute_blocks(setup.modules, config.memory)
    batch, num_batches = next(setup.train.batches()), len(setup.train.own_streams)
    memory = rehearsal.step(
        setup.objective,
        setup.modules,
        build_optimizer(setup.modules.values(), config.optim, parts),
        batch,
        accelerator.device,
        accelerator.autocast,
        num_batches,
    )
    flops = StepFlops(setup.modules, recomputed).of(batch) * num_batches
    return Plan(setup, batch, memory, flops)


def _describe_memory(memory: StepMemory) -> str:
    return (
        f"memory: weights {_megabytes(memory.weights)}, gradients {_megabytes(memory.gradients)}, "
        f"optimizer {_megabytes(memory.optimizer)}, "
        f"activations of the first batch {_megabytes(memory.activations)}; "
        f"{_megabytes(memory.peak)} at the peak of a step, and the libraries' own\n"
        f"estimated on each of {SHOWN_DEVICES} GPUs: "
        f"whole copies {_megabytes(memory.on_each_of(SHOWN_DEVICES, sharded=False))}, "
        f"sharded {_megabytes(memory.on_each_of(SHOWN_DEVICES, sharded=True))}"
    )


def _describe_flops(flops: Flops) -> str:
    again = f", {_operations(flops.recomputed)} recomputed" if flops.recomputed else ""
    return (
        f"operations: {_operations(flops.total)} a step: {_operations(flops.forward)} forward, "
        f"{_operations(flops.backward)} backward{again}"
    )


def _describe_batch(setup: Setup, batch: ChatBatch | PairBatch) -> str:
    tokenizer = setup.processor.tokenizer
    images: ImageInputs | None
    first = batch.keys[0]
    if isinstance(batch, PairBatch):
        ids, images = batch.text_ids, batch.images
        shown = repr(tokenizer.decode(ids[0].tolist()))
    else:
        ids, images = batch.inputs.input_ids, batch.inputs.images
        length = int(batch.inputs.lengths[0])
        shown = _marked(setup, ids[0, :length].tolist(), batch.loss_mask[0, :length].tolist())
        if batch.inputs.document_lengths is not None:
            first = f"{batch.inputs.document_lengths[0].count_nonzero()} packed documents"
    lines = [
        f"first batch: {len(batch.keys)} samples in {len(ids)} rows, {batch.num_tokens} text "
        f"tokens, {100 * (1 - batch.num_tokens / batch.padded_tokens):.0f} % padding, "
        f"{_count_images(images)}",
        f"first row ({first}), supervised text in [[ ]]:",
        f"  {shown}",
    ]
    return "\n".join(lines)


def _marked(setup: Setup, ids: list[int], supervised: list[bool]) -> str:
    """Decode a row, its supervised runs in double brackets, cut to `SHOWN_TOKENS`."""
    pieces: list[str] = []
    run: list[int] = []
    state = False
    for token, mark in [*zip(ids[:SHOWN_TOKENS], supervised, strict=False), (-1, None)]:
        if mark != state and run:
            text = setup.processor.tokenizer.decode(run, skip_special=False)
            pieces.append(f"[[{text}]]" if state else text)
            run = []
        state = bool(mark)
        run.append(token)
    return "".join(pieces).replace("\n", "\\n") + (" ..." if len(ids) > SHOWN_TOKENS else "")


def _count_images(images: ImageInputs | None) -> str:
    if images is None:
        return "no pictures"
    return f"{len(images.num_tiles)} pictures in {int(images.num_tiles.sum())} tiles"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"


def _operations(count: float) -> str:
    for size, unit in ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP")):
        if count >= size:
            return f"{count / size:,.3g} {unit}"
    return f"{count / 1e6:,.3g} MFLOP"
