"""Run as a program by test_parallel.py: stages trained by one process and by several.

    python parallel_program.py CASES.json

Of each case: its name, the number of ranks, the configuration, the checkpoint to resume from, and
whether a rank is killed. One process imports, then a process a rank is forked for every case.
Writes OUT/exit.json: the exit codes of the ranks and the seconds until the last has ended.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors.torch import save_file
from torch import Tensor

from data.collate import PairBatch
from data.loader import Loader
from training.config import TrainConfig
from training.distributed import share_of_step, sum_over_ranks
from training.metrics import METRICS_FILE, read_metrics
from training.objectives import Contrastive
from training.parallel import parallelise
from training.run import train_stage
from training.setup import build_accelerator, build_setup
from training.sharded import gather_whole

PAIRS_OF_RANKS = (5, 3)


def join_ranks(folder: Path, rank: int, ranks: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=60),
    )


def run_rank(case: dict[str, Any], rank: int) -> None:
    config = TrainConfig.model_validate_json(json.dumps(case["config"]))
    if case["ranks"] > 1:
        join_ranks(config.out.parent / f"{config.out.name}.store", rank, case["ranks"])
    if case["kill"] and rank == 1:
        threading.Thread(target=die_after_three_steps, args=(config.out,), daemon=True).start()
    if case["contrast"]:
        contrast(config, rank, case["ranks"])
    else:
        train_stage(config, resume=case["resume"] is not None)
    if case["ranks"] > 1:
        torch.distributed.destroy_process_group()


def die_after_three_steps(out: Path) -> None:
    while len(read_metrics(out / METRICS_FILE)) < 3:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def contrast(config: TrainConfig, rank: int, ranks: int) -> None:
    """Differentiate the contrastive loss of unlike parts of a batch, one a rank, or of all of it.

    Writes OUT/gradients.safetensors.
    """
    torch.manual_seed(0)
    setup = build_setup(config)
    objective = setup.objective
    assert isinstance(objective, Contrastive)
    parallelise(config.parallel, build_accelerator(config), objective)
    reader = setup.train.reader
    everyones = Loader(setup.train.sources, config.data, reader.encode, reader.collate, seed=0)
    batch = next(b for b in everyones.batches() if len(b.keys) == sum(PAIRS_OF_RANKS))
    if ranks > 1:
        first = sum(PAIRS_OF_RANKS[:rank])
        batch = part_of(batch, first, first + PAIRS_OF_RANKS[rank])
    device = torch.device("cpu")
    weight = sum_over_ranks(objective.weight(batch), device)
    total = objective.loss(batch).total
    share_of_step(total, weight).backward()
    gradients: dict[str, Tensor] = {}
    for name, module in setup.modules.items():
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, key
            gradients[f"{name}.{key}"] = parameter.grad
    loss = sum_over_ranks(total.item(), device) / weight
    whole = gather_whole({**gradients, "loss": torch.tensor(loss)})
    if whole:
        config.out.mkdir()
        save_file(whole, config.out / "gradients.safetensors")


def part_of(batch: PairBatch, first: int, stop: int) -> PairBatch:
    images = batch.images
    tiles = [0, *images.num_tiles.cumsum(0).tolist()]
    part = replace(
        images,
        pixels=images.pixels[tiles[first] : tiles[stop]],
        num_tiles=images.num_tiles[first:stop],
        aspect_ratio_ids=images.aspect_ratio_ids[first:stop],
        num_images=images.num_images[first:stop],
        image_index=torch.arange(stop - first),
    )
    return PairBatch(batch.keys[first:stop], part, batch.text_ids[first:stop], 0)


def run_case(case: dict[str, Any]) -> None:
    fork = multiprocessing.get_context("fork")
    out = Path(case["config"]["out"])
    (out.parent / f"{out.name}.store").mkdir()
    if case["resume"] is not None:
        checkpoint = Path(case["resume"])
        shutil.copytree(checkpoint, out / "checkpoints" / checkpoint.name)
    started = time.monotonic()
    jobs = [fork.Process(target=run_rank, args=(case, rank)) for rank in range(case["ranks"])]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(100)
        if job.exitcode != 0 and not case["kill"]:
            for other in jobs:
                other.kill()
            sys.exit(f"{case['name']}: a process ended with {job.exitcode}")
    ended = {"codes": [job.exitcode for job in jobs], "seconds": time.monotonic() - started}
    (out.parent / f"{out.name}.exit.json").write_text(json.dumps(ended))
    print(case["name"], f"{ended['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for given in json.loads(Path(sys.argv[1]).read_text()):
        run_case(given)
