"""Run as a program by test_distributed.py: gradients of rows dealt to ranks, and of all at once.

    python ranks_program.py CONFIG.json OUT

One process imports, then a process a rank is forked for every case. Writes OUT/CASE.safetensors.
"""

import multiprocessing
import os
import socket
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from data.collate import collate_chats
from data.encode import ChatRows
from encoders.tiling import TiledImage, supported_canvases
from training.distributed import share_of_step, sum_over_ranks
from training.objectives import NextToken
from training.stages import STAGES, freeze, parts_of
from vlm.config import VLMConfig
from vlm.inputs import Example
from vlm.model import VisionLanguageModel

IMAGE_ID = 299
CANVASES = [(1, 1), (1, 2), (2, 2)]
# For each case: how ranks exchange, the stage, the rows of each rank as (text tokens, pictures),
# and the tokens of a packed sequence. Ranks differ as much as they can.
TEXT, ONE, MANY = (12, 0), (9, 1), (30, 7)
CASES = {
    "text_beside_pictures": ("ddp", "finetune", [[TEXT, TEXT], [MANY, ONE]], None),
    "align_text_beside_pictures": ("ddp", "align", [[TEXT], [MANY, ONE, MANY]], None),
    "one_of_four_has_pictures": ("ddp", "finetune", [[TEXT], [(4, 0)], [MANY] * 3, [TEXT]], None),
    "no_rank_has_pictures": ("ddp", "align", [[TEXT], [(5, 0)], [TEXT, TEXT], [(3, 0)]], None),
    "packed": ("ddp", "finetune", [[TEXT] * 4, [MANY, TEXT, ONE, TEXT]], 32),
    "sharded_text_beside_pictures": ("fsdp", "finetune", [[TEXT, TEXT], [MANY, ONE]], None),
}


def make_row(tokens: int, pictures: int, seed: int) -> ChatRows:
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 250, (tokens,), generator=rng)
    ids[1 : 1 + 3 * pictures : 3] = IMAGE_ID
    images = []
    for number in range(pictures):
        canvas = CANVASES[number % len(CANVASES)]
        shape = canvas[0] * canvas[1], 3, 16, 16
        tiles = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
        images.append(TiledImage(tiles, 1 + supported_canvases(4).index(canvas), canvas))
    mask = torch.rand(tokens, generator=rng) < 0.5
    mask[-1] = True
    return ChatRows(str(seed), (Example(ids, mask, tuple(images)),))


def deal(case: str) -> list[list[ChatRows]]:
    _, _, ranks, _ = CASES[case]
    return [
        [make_row(*shape, seed=10 * rank + number) for number, shape in enumerate(shapes)]
        for rank, shapes in enumerate(ranks)
    ]


def make_model(config: VLMConfig, case: str) -> VisionLanguageModel:
    torch.manual_seed(0)
    model = VisionLanguageModel(config, IMAGE_ID)
    for name, parameter in model.named_parameters():
        if "gate" in name.rpartition(".")[2]:
            torch.nn.init.ones_(parameter)
    components = {name: getattr(model, name) for name in ("encoder", "projector", "decoder")}
    freeze(STAGES[CASES[case][1]], parts_of(components))
    return model


def gradients(model: VisionLanguageModel, loss: Tensor) -> dict[str, Tensor]:
    found = {"loss": loss.detach()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            gradient = parameter.grad
            found[name] = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    return found


def run_alone(config: VLMConfig, case: str, out: Path) -> None:
    """Differentiate the union of all ranks' rows in one process, unpacked."""
    model = make_model(config, case)
    rows = [row for rank_rows in deal(case) for row in rank_rows]
    loss = NextToken(model).loss(collate_chats(rows, 0))
    mean = loss.total / loss.weight
    if mean.requires_grad:
        mean.backward()
    save_file(gradients(model, mean), out / f"{case}.alone.safetensors")


def run_rank(config: VLMConfig, case: str, out: Path, rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    size = len(CASES[case][2])
    # A rank that waits for another in vain says so after this.
    timeout = timedelta(seconds=30)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=size, timeout=timeout)
    model = make_model(config, case)
    if CASES[case][0] == "ddp":
        objective = NextToken(model)
        objective.forward = DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (size,))
        for part in (model.encoder, model.projector, *model.decoder.layers, model):
            fully_shard(part, mesh=mesh)
        objective = NextToken(model)
    batch = collate_chats(deal(case)[rank], 0, CASES[case][3])
    weight = sum_over_ranks(objective.weight(batch), torch.device("cpu"))
    total = objective.loss(batch).total
    share_of_step(total, weight).backward()
    mean = torch.tensor(sum_over_ranks(total.item(), torch.device("cpu")) / weight)
    found = gradients(model, mean.float())
    save_file(found, out / f"{case}.rank{rank}.safetensors")
    torch.distributed.destroy_process_group()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main(config_file: Path, out: Path, cases: list[str]) -> None:
    config = VLMConfig.model_validate_json(config_file.read_text())
    fork = multiprocessing.get_context("fork")
    for case in cases:
        port = free_port()
        jobs = [fork.Process(target=run_alone, args=(config, case, out))]
        for rank in range(len(CASES[case][2])):
            jobs.append(fork.Process(target=run_rank, args=(config, case, out, rank, port)))
        for job in jobs:
            job.start()
        for job in jobs:
            job.join(60)
            if job.exitcode != 0:
                for other in jobs:
                    other.kill()
                sys.exit(f"{case}: a process ended with {job.exitcode}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:] or list(CASES))
