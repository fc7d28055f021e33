"""What a run would do: its parts, its memory, its first batch."""

import torch
from torch import nn

from data.collate import ChatBatch, PairBatch
from training.config import TrainConfig
from training.run import Setup, build_setup, describe_parts
from training.stages import freeze, parts_of
from vlm.inputs import ImageInputs

# AdamW keeps two moments beside each trained weight and its gradient.
OPTIMIZER_COPIES = 2
SHOWN_TOKENS = 120


def describe_run(config: TrainConfig) -> str:
    """Return the parts trained and frozen, a memory estimate, and the first batch, as text.

    Parents are loaded and verified, and the first batch is read, as in the run itself.
    """
    torch.manual_seed(config.seed)
    setup = build_setup(config)
    freeze(setup.stage, parts_of(setup.modules))
    batch = next(setup.train.batches())
    loader = setup.train
    num_shards = sum(len(source.num_samples) for source in loader.sources)
    lines = [
        describe_parts(setup),
        f"data: {loader.order.num_samples:,} samples in {num_shards} shards; "
        f"{config.steps:,} steps of {loader.order.num_streams} batch(es)",
        _describe_memory(setup, batch),
        _describe_batch(setup, batch),
    ]
    return "\n".join(lines)


def _describe_memory(setup: Setup, batch: ChatBatch | PairBatch) -> str:
    parameters = [p for module in setup.modules.values() for p in module.parameters()]
    weights = sum(p.numel() * p.element_size() for p in parameters)
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    activations = _activation_bytes(setup, batch)
    total = weights + (1 + OPTIMIZER_COPIES) * trained + activations
    return (
        f"memory: weights {_megabytes(weights)}, gradients {_megabytes(trained)}, "
        f"optimizer {_megabytes(OPTIMIZER_COPIES * trained)}, "
        f"activations of the first batch {_megabytes(activations)}; "
        f"together {_megabytes(total)} and the libraries' own"
    )


def _activation_bytes(setup: Setup, batch: ChatBatch | PairBatch) -> int:
    """Bytes that autograd keeps for the backward pass of one batch, counted by running it."""
    parameters = {p.data_ptr() for module in setup.modules.values() for p in module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, nn.Identity()):
        loss = setup.objective.loss(batch)
    del loss
    return sum(kept.values())


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
    return f"{len(images.num_tiles)} pictures in {len(images.pixels)} tiles"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.0f} MB"
