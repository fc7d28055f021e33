"""Run as a program by test_saver_ranks.py: two ranks save together, or not at all.

    python saver_ranks_program.py OUT

Writes what each rank has seen to OUT/rank0.json and OUT/rank1.json.
"""

import json
import multiprocessing
import os
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed
from safetensors.torch import save_file

from data.loader import LoaderState
from training.checkpoints import list_checkpoints
from training.distributed import max_over_ranks
from training.saver import Saver
from training.signals import StopSignals
from training.state import Progress
from vlm.errors import UserError

RANKS = 2


@dataclass
class Part:
    """A rank's part of a run: a file of its own, that cannot be written at one step."""

    rank: int
    value: float = 0.0
    broken: bool = False

    def snapshot(self) -> "Part":
        return Part(self.rank, self.value, self.broken)

    num_bytes = 4

    def write(self, folder: Path) -> list[str]:
        if self.broken:
            raise OSError(28, "No space left on device")
        name = f"rank{self.rank}.safetensors"
        save_file({"value": torch.tensor([self.value])}, folder / name)
        return [name]

    def restore(self, folder: Path) -> None:
        self.value = float((folder / f"rank{self.rank}.safetensors").stat().st_size)

    def restore_weights(self, folder: Path) -> None:
        raise NotImplementedError


def save(saver: Saver, step: int) -> str | None:
    """Save a step; return what went wrong."""
    try:
        with saver:
            saver.save(Progress(step, LoaderState.start(1), 0.0, None, {}))
    except UserError as error:
        return str(error)
    return None


def rank_program(rank: int, out: Path) -> None:
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{out}/store",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=60),
    )
    part = Part(rank)
    saver = Saver(out / "checkpoints", part, {"steps": 3}, 2)
    seen: dict[str, object] = {"first": save(saver, 1)}
    part.broken = rank == 1
    seen["broken"] = save(saver, 2)
    part.broken = False
    with StopSignals() as stop:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        told = stop.received is not None
        seen["told"] = told
        seen["stops"] = max_over_ranks(int(told), torch.device("cpu"))
    seen["last"] = save(saver, 3)
    progress = Saver(out / "checkpoints", part, {"steps": 3}, 2).resume(print)
    seen["resumed"] = progress and progress.step
    torch.distributed.barrier()
    seen["checkpoints"] = [path.name for path in list_checkpoints(out / "checkpoints")]
    seen["files"] = sorted(path.name for path in (out / "checkpoints/step-00000003").iterdir())
    (out / f"rank{rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    folder = Path(sys.argv[1])
    ranks = [context.Process(target=rank_program, args=(rank, folder)) for rank in range(RANKS)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    sys.exit(any(process.exitcode for process in ranks))
