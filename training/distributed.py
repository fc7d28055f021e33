"""What makes every rank run the same collectives, whatever its rows hold.

Gradients are exchanged, and sharded weights gathered, when a part of the model runs. A rank whose
batch shows no picture would skip the encoder, the projector and the cross-attention blocks while
the others wait for it there.
"""

from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from vlm.errors import UserError
from vlm.inputs import ImageInputs, ModelInputs

ValueT = TypeVar("ValueT")


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


def share_of_step(total: Tensor, weight: float) -> Tensor:
    """Return what a rank must differentiate, for gradients that ranks average.

    Args:
        total: the loss of this rank's batch, summed over its terms.
        weight: the terms of all ranks' batches: the step's loss is the sum of totals over it.
    """
    return total * num_ranks() / weight


def with_unseen_image(inputs: ModelInputs, tile_size_px: int) -> ModelInputs:
    """Return a batch that runs every part of the model.

    One without pictures gets an empty one that no token sees, for it stands behind no `<|image|>`:
    hidden states stay what they are to the bit, and the parts that read it get gradients of zero.
    """
    if inputs.images is not None:
        return inputs
    device = inputs.input_ids.device
    num_images = torch.zeros(len(inputs.lengths), dtype=torch.int64, device=device)
    num_images[0] = 1
    one = torch.ones(1, dtype=torch.int64, device=device)
    pixels = torch.zeros(1, 3, tile_size_px, tile_size_px, dtype=torch.uint8, device=device)
    return replace(inputs, images=ImageInputs(pixels, one, one, num_images, one - 1))
