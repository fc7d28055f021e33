"""Several processes on one run: who holds which weights, and when gradients are exchanged.

Everything is applied to modules from outside: torch's DistributedDataParallel around the whole
model, or `fully_shard` (FSDP2) block by block. Ranks exchange gradients that are averages over
them (training/distributed.py says how losses are weighted for it).
"""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from accelerate import Accelerator
from open_clip.transformer import TextTransformer
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.nn.parallel import DistributedDataParallel

from encoders.vit import VisionEncoder
from projector.mlp import Projector
from training.config import ParallelConfig, TrainConfig
from training.distributed import num_ranks
from training.memory import blocks_of
from training.objectives import Objective
from vlm.contrastive import ContrastiveHead
from vlm.decoder.stack import Decoder
from vlm.errors import UserError

Strategy = Literal["none", "ddp", "fsdp", "hsdp"]


class Parallel:
    """What the loop needs to know of how a model is shared.

    Args:
        model: what the objective runs: as it is, in DistributedDataParallel, or sharded.
    """

    def __init__(
        self, strategy: Strategy, model: nn.Module, reduce_every_batch: bool = False
    ) -> None:
        self.strategy = strategy
        self.model = model
        self.reduce_every_batch = reduce_every_batch

    def __str__(self) -> str:
        return "one process" if num_ranks() == 1 else f"{self.strategy} over {num_ranks()} ranks"

    def batch(self, is_last: bool) -> AbstractContextManager[Any]:
        """Surround a batch of a step, forward and backward; gradients are exchanged in the last."""
        exchange = is_last or self.reduce_every_batch
        if isinstance(self.model, DistributedDataParallel) and not exchange:
            return self.model.no_sync()
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(exchange)
        return nullcontext()

    def reshard(self) -> None:
        """Give weights up that a forward pass without a backward one has left whole."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def choose_strategy(config: ParallelConfig, ranks: int) -> Strategy:
    """Return how so many ranks train together; one shares nothing.

    Raises:
        UserError: several ranks, and strategy none; or one rank, and its memory is to be spared.
    """
    if ranks == 1:
        if config.cpu_offload:
            raise UserError(
                "parallel.cpu_offload shards weights, which takes several processes: start them "
                "with torchrun, or leave it out"
            )
        return "none"
    if config.strategy == "none":
        raise UserError(
            f"parallel.strategy is none, but {ranks} processes were started, each of which would "
            "train alone: choose ddp, fsdp or hsdp, or start one process"
        )
    return "ddp" if config.strategy == "auto" else config.strategy


def check_shardable(config: TrainConfig) -> None:
    """Check that a run with these settings can have its weights sharded, if it is to.

    Raises:
        UserError: something needs whole weights, or weights of one dtype.
    """
    strategy = choose_strategy(config.parallel, num_ranks())
    if strategy not in ("fsdp", "hsdp"):
        return
    if config.evaluate is not None:
        raise UserError(
            f"evaluate asks questions of whole weights; parallel.strategy {strategy} shards them: "
            "leave evaluate out, or choose ddp"
        )
    if config.lora is not None and config.lora.base_weights != "float32":
        raise UserError(
            f"parallel.strategy {strategy} shards a block's weights as one, and its adapters are "
            f"float32: lora.base_weights is {config.lora.base_weights}, set it to float32, or "
            "choose ddp"
        )


def parallelise(
    config: ParallelConfig, accelerator: Accelerator, objective: Objective[Any]
) -> Parallel:
    """Move an objective's model to the device and share it among the ranks.

    To be called when the stage has frozen what it freezes, and before there is an optimizer:
    sharding puts other parameters in the place of the model's.

    Raises:
        UserError: the ranks cannot be grouped as wanted, or weights be offloaded.
    """
    strategy = choose_strategy(config, num_ranks())
    model, device = objective.model, accelerator.device
    if config.cpu_offload and device.type == "cpu":
        raise UserError(
            "parallel.cpu_offload moves weights from a GPU to the host's memory; device is cpu, "
            "where they lie already: leave it out"
        )
    if strategy in ("fsdp", "hsdp"):
        # Blocks go to the device one by one: no rank's device ever holds the whole model.
        _shard(model, build_mesh(config, strategy, device), accelerator, config.cpu_offload)
        return Parallel(strategy, model, config.reduce_every_batch)
    model.to(device)
    if strategy == "ddp":
        objective.forward = DistributedDataParallel(model, gradient_as_bucket_view=True)
    return Parallel(strategy, objective.forward)


def build_mesh(config: ParallelConfig, strategy: Strategy, device: torch.device) -> DeviceMesh:
    """Arrange the ranks: in one row, or for hsdp in rows that shard and columns that replicate.

    Raises:
        UserError: hsdp, and the ranks do not make several rows of `shard_ranks`.
    """
    ranks = num_ranks()
    if strategy == "fsdp":
        return init_device_mesh(device.type, (ranks,), mesh_dim_names=("shard",))
    shards = config.shard_ranks or int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    if ranks % shards or ranks == shards:
        raise UserError(
            f"parallel.strategy hsdp over {ranks} processes cannot make several groups of "
            f"{shards}: set parallel.shard_ranks to a divisor of {ranks}, or strategy to fsdp"
        )
    names = ("replicate", "shard")
    return init_device_mesh(device.type, (ranks // shards, shards), mesh_dim_names=names)


def gathered_parts(model: nn.Module) -> list[nn.Module]:
    """The parts of a model that are gathered as a unit, innermost first, without the model."""
    parts: list[nn.Module] = []
    for module in model.modules():
        if isinstance(module, VisionEncoder):
            parts += [*blocks_of(module), module]
        elif isinstance(module, Decoder):
            # The embeddings stay with the whole model: they are the output layer too, which is
            # used outside of the decoder's forward pass.
            parts += blocks_of(module)
        elif isinstance(module, TextTransformer):
            parts += module.transformer.resblocks
        elif isinstance(module, Projector | ContrastiveHead):
            parts.append(module)
    return parts


def _shard(model: nn.Module, mesh: DeviceMesh, accelerator: Accelerator, cpu_offload: bool) -> None:
    """Shard weights over a mesh, which leaves float32 ones float32; compute in bf16 if asked."""
    precision = MixedPrecisionPolicy()
    if accelerator.mixed_precision == "bf16":
        precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    offload = CPUOffloadPolicy() if cpu_offload else OffloadPolicy()
    for part in [*gathered_parts(model), model]:
        # The temperature is read after the head's forward pass, and bf16 is too coarse for it.
        is_head = isinstance(part, ContrastiveHead)
        fully_shard(
            part,
            mesh=mesh,
            mp_policy=MixedPrecisionPolicy() if is_head else precision,
            offload_policy=offload,
            reshard_after_forward=False if is_head else None,
        )
