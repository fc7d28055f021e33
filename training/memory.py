"""Activation checkpointing: blocks that keep their input alone and run again in the backward pass.

It is put around blocks from outside. Their code, their names and their results stay what they are,
to the bit: a block computes the same twice.
"""

from collections.abc import Iterable, Mapping
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from encoders.vit import VisionEncoder
from training.config import MemoryConfig
from vlm.decoder.stack import Decoder
from vlm.errors import UserError


def recompute_blocks(modules: Mapping[str, nn.Module], config: MemoryConfig) -> list[nn.Module]:
    """Let blocks recompute their activations, as the configuration says; return those blocks.

    Every `recompute_every`-th block of a part, counted from its first, in the order in which they
    run. To be called when the stage has frozen what it freezes.

    Args:
        modules: the components of a stage by their names.
    Raises:
        UserError: a part is none of the stage's, or frozen with all that comes before it, so that
            nothing of it is kept anyway.
    """
    chosen: list[nn.Module] = []
    for part in config.recompute:
        if part not in modules:
            raise UserError(
                f"memory.recompute names {part}, this stage has {', '.join(modules)}; leave it out"
            )
        if part == "encoder" and not any(p.requires_grad for p in modules[part].parameters()):
            raise UserError(
                "memory.recompute names encoder, which this stage freezes: its activations are not "
                "kept anyway; leave it out"
            )
        chosen += blocks_of(modules[part])[:: config.recompute_every]
    for block in chosen:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return chosen


def blocks_of(component: nn.Module) -> list[nn.Module]:
    """The transformer blocks of an encoder or a decoder, in the order in which they run.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(component, Decoder):
        return list(component.layers)
    if not isinstance(component, VisionEncoder):
        raise TypeError(f"{type(component).__name__} has no blocks to recompute")
    local: Iterable[nn.Module] = component.local_layers
    if component.config.tower is not None:
        local = component.tower.trunk.blocks
    return [*local, *component.global_layers]
