"""Run as a program by test_loader.py: readers that are killed and resumed in other numbers.

    python reader_program.py SHARDS OUT

Four processes read, each the streams of its rank, and write down every step and where they stood
after it. They are killed at random, resumed as two, killed, and resumed as eight. OUT/steps.json
gets the batches of every step, in the order of the streams.
"""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.config import DataConfig
from data.loader import Loader, LoaderState
from data.schema import RawSample
from data.shards import ShardSet

STREAMS = 8
LAST_STEPS = 12  # of the readers that are not killed


@dataclass(frozen=True)
class Row:
    """A sample's key with a number drawn for it, as in test_loader.py."""

    key: str
    row_tokens: tuple[int, ...]
    num_tiles: int = 0


def encode(raw: RawSample, rng: random.Random) -> Row:
    return Row(f"{raw.key}:{rng.randrange(1000)}", (len(raw.sample.messages[0].text),))


def collate(rows: Sequence[Row]) -> list[str]:
    return [row.key for row in rows]


def read(shards: str, log: Path, rank: int, num_ranks: int, state: LoaderState, most: int) -> None:
    """Read steps as one rank, and write each down as a line before the next begins."""
    config = DataConfig(
        train=(shards,), batch_samples=2, pool_batches=3, shuffle_shards=2, max_tokens=100
    )
    loader = Loader(
        [ShardSet.open(shards)],
        config,
        encode,
        collate,
        seed=0,
        num_streams=STREAMS,
        rank=rank,
        num_ranks=num_ranks,
    )
    loader.state = state
    batches = loader.batches()
    with log.open("w") as file:
        for _ in range(most):
            own = [next(batches) for _ in loader.own_streams]
            file.write(json.dumps({"batches": own, "state": asdict(loader.state)}) + "\n")
            file.flush()
            time.sleep(random.uniform(0, 0.004))


def run(shards: str, out: Path, num_ranks: int, state: LoaderState, kill: bool) -> list[Any]:
    """The steps that all ranks have done when they end or are killed."""
    logs = [out / f"{num_ranks}.{rank}.jsonl" for rank in range(num_ranks)]
    fork = multiprocessing.get_context("fork")
    most = 10**6 if kill else LAST_STEPS
    ranks = [
        fork.Process(target=read, args=(shards, log, rank, num_ranks, state, most))
        for rank, log in enumerate(logs)
    ]
    for process in ranks:
        process.start()
    while kill and min(len(whole_lines(log)) for log in logs) < 10:
        time.sleep(0.01)
    if kill:
        time.sleep(random.uniform(0, 0.2))
    for process in ranks:
        if kill and process.pid is not None:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    return list(zip(*map(whole_lines, logs), strict=False))


def whole_lines(log: Path) -> list[Any]:
    """What a reader wrote down, without a line that it was killed in."""
    text = log.read_text() if log.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def main(shards: str, out: Path) -> None:
    state = LoaderState.start(STREAMS)
    steps = []
    for num_ranks, kill in ((4, True), (2, True), (8, False)):
        done = run(shards, out, num_ranks, state, kill)
        for ranks in done:
            in_turn = zip(*(rank["batches"] for rank in ranks), strict=True)
            steps.append([batch for together in in_turn for batch in together])
        state = LoaderState.merge([LoaderState.parse(rank["state"]) for rank in done[-1]])
    (out / "steps.json").write_text(json.dumps(steps))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
