"""What makes every rank run the same collectives, whatever its rows hold.

Gradients are exchanged, and sharded weights gathered, when a part of the model runs. A rank whose
batch shows no picture would skip the encoder, the projector and the cross-attention blocks while
the others wait for it there.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from encoders.config import VisionConfig
from vlm.errors import UserError
from vlm.inputs import ImageInputs, ModelInputs

ValueT = TypeVar("ValueT")
BatchT = TypeVar("BatchT")


def is_launched() -> bool:
    """Whether a launcher (torchrun, `accelerate launch`, training/launch.py) made this process."""
    return "LOCAL_RANK" in os.environ


def num_ranks() -> int:
    """Processes that train together; 1 without a process group."""
    initialized = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if initialized else 1


def rank() -> int:
    """This process's place among those that train together, from 0."""
    return torch.distributed.get_rank() if num_ranks() > 1 else 0


def is_first_rank() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def leave_ranks() -> None:
    """Leave the group of processes, if there is one, when all is done."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def streams_of_step(batches_per_step: int | None, ranks: int) -> int:
    """Return the batches of a step over all ranks; None is one a rank.

    Raises:
        UserError: ranks cannot have equally many of them.
    """
    streams = batches_per_step or ranks
    if streams % ranks:
        raise UserError(
            f"batches_per_step {streams} cannot be shared evenly by {ranks} processes: "
            f"set a multiple of {ranks}, or start another number of processes"
        )
    return streams


def host_group() -> "torch.distributed.ProcessGroup | None":
    """A group of all ranks for what a thread exchanges beside the loop; None in one process."""
    if num_ranks() == 1:
        return None
    group = torch.distributed.new_group(backend="gloo")
    assert isinstance(group, torch.distributed.ProcessGroup)  # every rank is a member
    return group


def gather(value: ValueT, group: "torch.distributed.ProcessGroup | None" = None) -> list[ValueT]:
    """Return every rank's value, in the order of the ranks, on each of them."""
    if num_ranks() == 1:
        return [value]
    values: list[Any] = [None] * num_ranks()
    torch.distributed.all_gather_object(values, value, group=group)
    return values


def max_over_ranks(value: int, device: torch.device) -> int:
    """Return the largest of the ranks' values, the same on each."""
    if num_ranks() == 1:
        return value
    largest = torch.tensor(value, device=device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest.item())


def sum_over_ranks(value: float, device: torch.device) -> float:
    """Return the sum of the ranks' values, the same on each."""
    if num_ranks() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return total.item()


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Join the rows (n, D) of all ranks, which may have unlike n; gradients flow back to each.

    Returns:
        The rows of all ranks in their order, and the number of rows before this rank's.
    """
    size = torch.tensor([len(rows)], device=rows.device)
    sizes = [torch.empty_like(size) for _ in range(num_ranks())]
    torch.distributed.all_gather(sizes, size)
    counts = torch.cat(sizes).tolist()
    padded = F.pad(rows, (0, 0, 0, max(counts) - len(rows)))
    parts: Tensor = _Gather.apply(padded)  # (ranks, max n, D)
    joined = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return joined, sum(counts[: rank()])


def in_step(
    batches: Iterable[BatchT], idle: Callable[[], BatchT], device: torch.device
) -> Iterator[BatchT]:
    """Yield this rank's batches, then `idle` ones for as long as another rank still has some.

    Raises:
        UserError: no rank has any.
    """
    source = iter(batches)
    for number in itertools.count():
        batch = next(source, None)
        if not sum_over_ranks(batch is not None, device):
            if number == 0:
                raise UserError("the data holds no usable sample")
            return
        yield idle() if batch is None else batch


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale gradients down to a global norm of `max_norm`; return their norm before.

    Of sharded parameters it is the norm of whole gradients, the same on every rank.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm.item()


def share_of_step(total: Tensor, weight: float) -> Tensor:
    """Return what a rank must differentiate, for gradients that ranks average.

    Args:
        total: the loss of this rank's batch, summed over its terms.
        weight: the terms of all ranks' batches: the step's loss is the sum of totals over it.
    """
    return total * num_ranks() / weight


def with_unseen_image(
    inputs: ModelInputs, vision: VisionConfig, has_features: bool = False
) -> ModelInputs:
    """Return a batch that runs every part of the model that other ranks' batches run.

    One without pictures gets an empty one that no token sees, for it stands behind no `<|image|>`:
    hidden states stay what they are to the bit, and the parts that read it get gradients of zero.
    """
    if inputs.images is not None:
        return inputs
    device = inputs.input_ids.device
    images = empty_image(len(inputs.lengths), vision, device, has_features)
    return replace(inputs, images=images)


def empty_image(
    num_rows: int, vision: VisionConfig, device: torch.device, has_features: bool = False
) -> ImageInputs:
    """Return one black image of one tile, shown by the first of `num_rows` rows.

    Args:
        has_features: give features in place of its pixels, all zero.
    """
    num_images = torch.zeros(num_rows, dtype=torch.int64, device=device)
    num_images[0] = 1
    one = torch.ones(1, dtype=torch.int64, device=device)
    if has_features:
        features = torch.zeros(1, vision.num_tokens, vision.output_size, device=device)
        return ImageInputs(None, one, one, num_images, one - 1, features)
    size = vision.tile_size_px
    pixels = torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device)
    return ImageInputs(pixels, one, one, num_images, one - 1)


class _Gather(torch.autograd.Function):
    """Stack a tensor of every rank; backward, each gets what all ranks' losses owe to it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(num_ranks())]
        torch.distributed.all_gather(parts, own.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous()
        torch.distributed.all_reduce(total)
        return total[rank()]
