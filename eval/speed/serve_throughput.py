"""What answering many at a time brings: `vlm serve` with 16 clients beside one."""

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from eval.speed.harness import Row
from eval.speed.serve_clients import (
    Tally,
    Target,
    free_port,
    question,
    require,
    server_process,
    target_at,
)
from vlm.chat.processor import Processor
from vlm.config import VLMConfig, load_config
from vlm.model import VisionLanguageModel
from vlm.weights.folder import COMPONENTS, FORMAT, FolderConfig, save_folder

SHAPE = Path("configs/model/tiny.yaml")
ANSWER_TOKENS = 32
ROUNDS = 3


def make_model(folder: Path) -> None:
    """Write a model folder of the quickstart's shape with random weights."""
    config = load_config(VLMConfig, SHAPE)
    words = [_question(number) for number in range(64)]
    processor = Processor.train(words, config.vision, config.decoder.vocab_size)
    torch.manual_seed(0)
    network = VisionLanguageModel(config, processor.tokenizer.image_id)
    components = {name: getattr(network, name) for name in COMPONENTS}
    described = FolderConfig(
        format=FORMAT, stage="finetune", components=tuple(components), model=config
    )
    save_folder(folder, described, components, processor, {})


def compare_concurrency(folder: Path, concurrency: int, num_requests: int) -> Row:
    """Measure answers a second of a model folder, many at a time beside one at a time.

    Raises:
        RuntimeError: the two give different answers.
    """
    port, slots = free_port(), f"slots={concurrency}"
    arguments = ["-m", "vlm", "serve", str(folder), "--port", str(port), slots]
    with server_process(arguments, port) as pid:
        model = folder.resolve().name
        many_s, one_s = asyncio.run(_in_turn(port, pid, model, concurrency, num_requests))
    return Row(
        name="throughput",
        setting=f"{concurrency} at a time beside one, {num_requests} requests",
        ours=num_requests / many_s,
        peer=num_requests / one_s,
        ratio=one_s / many_s,
        unit="answers/s",
    )


async def _in_turn(
    port: int, pid: int, model: str, concurrency: int, num_requests: int
) -> tuple[float, float]:
    """Seconds for all requests, many at a time and one: the best of a few rounds each."""
    questions = [_question(number) for number in range(num_requests)]
    many_s, one_s = [], []
    async with target_at(port, pid, model) as target:
        await _ask(target, questions, concurrency)
        for _ in range(ROUNDS):
            many, seconds = await _ask(target, questions, concurrency)
            many_s.append(seconds)
            one, seconds = await _ask(target, questions, 1)
            one_s.append(seconds)
            if many != one:
                raise RuntimeError("answers given together differ from those one at a time")
    return min(many_s), min(one_s)


async def _ask(target: Target, questions: Sequence[str], at_a_time: int) -> tuple[list[str], float]:
    gate, tally = asyncio.Semaphore(at_a_time), Tally()

    async def one(text: str) -> str:
        body = {**question(target.model, text), "max_tokens": ANSWER_TOKENS}
        async with gate:
            answer = await target.chat(json.dumps(body).encode(), tally)
        require(tally, {"200"})
        assert answer is not None
        return str(answer["choices"][0]["message"]["content"])

    start = time.perf_counter()
    texts = await asyncio.gather(*(one(text) for text in questions))
    return list(texts), time.perf_counter() - start


def _question(number: int) -> str:
    return f"How many circles are there in picture {number}?"
