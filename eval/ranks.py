"""Several processes that share an evaluation, as torchrun or accelerate start them."""

import os

import torch
import torch.distributed


def rank() -> int:
    """This process's number, 0 where it is the only one."""
    return int(os.environ.get("RANK", "0"))


def num_ranks() -> int:
    """How many processes share the work."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_device(name: str) -> str:
    """The device of this process: of several on a machine, each has a GPU of its own."""
    if name in ("auto", "cuda") and num_ranks() > 1 and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return name


def wait_for_all() -> None:
    """Return when every process has come here."""
    if num_ranks() == 1:
        return
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    torch.distributed.barrier()
