"""`vlm serve` under load: how it stands crowds, and what serving many at a time brings.

The figures of load are measured with an engine that computes nothing, in a process of its own, so
that they are the server's. The peer of each is the limit that it must keep.
"""

import asyncio
import base64
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from eval.speed.harness import Row
from eval.speed.photos import encode_jpeg, make_photo
from eval.speed.serve_clients import (
    CHAT,
    Tally,
    Target,
    free_port,
    question,
    require,
    server_process,
    target_at,
)

PHOTO_PX = (700, 540)  # as a JPEG, 145 KB
RATE = 100
RETRY_S = 1.0  # what `Retry-After` says at least
STREAM_TOKENS_S = 5.0
STUB = "eval.speed.stub_server"


@dataclass(frozen=True)
class Load:
    """How long and how much.

    steady_s: of the steady load, and of the crowd.
    streams_s: of the event streams.
    mixed: good and bad requests.
    disconnects: of clients, at random.
    """

    steady_s: float = 30.0
    streams_s: float = 60.0
    mixed: int = 10_000
    disconnects: int = 100


def measure_load(load: Load) -> list[Row]:
    """Put a server with a stub engine under load.

    Returns:
        a row for each figure: ours, and the limit as the peer.
    Raises:
        RuntimeError: an answer that there must not be: a reset, a 500.
    """
    rows: list[Row] = []
    with _stub_process({"slots": 32, "queue": 64}, step_s=0.005) as (port, pid):
        for part in (_steady, _crowd, _mixed, _disconnects):
            rows += asyncio.run(_measure(port, pid, part, load))
    with _stub_process({"slots": 64, "queue": 0}, step_s=1 / STREAM_TOKENS_S) as (port, pid):
        rows += asyncio.run(_measure(port, pid, _streams, load))
    return rows


async def _steady(target: Target, load: Load) -> list[Row]:
    """100 requests a second with a photo each, at most 32 at a time; and `/health` meanwhile."""
    body = json.dumps(_photo_question(target.model)).encode()
    tally, health = Tally(), Tally()
    gate = asyncio.Semaphore(32)
    await target.chat(body, Tally())

    async def one() -> None:
        async with gate:
            await target.chat(body, tally)

    async def all_of_them() -> float:
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(int(RATE * load.steady_s)):
                await asyncio.sleep(max(0.0, start + number / RATE - time.perf_counter()))
                await gate.acquire()  # the clock waits too: what cannot be kept up shows as a rate
                gate.release()
                group.create_task(one())
        return time.perf_counter() - start

    seconds = await _watching_health(target, health, all_of_them())
    require(tally, {"200"})
    rate = len(tally.seconds[200]) / seconds
    return [
        _at_least("steady", "145 KB JPEGs, 32 at a time", rate, RATE * 0.98, "requests/s"),
        _at_most("steady", "p99 of answers", tally.p99(200), 1.0),
        _at_most("steady", "p99 of /health", health.p99(200), 0.25),
    ]


async def _crowd(target: Target, load: Load) -> list[Row]:
    """256 clients at once, that come again after a second: 200 or 429, nothing else."""
    body = json.dumps(_photo_question(target.model)).encode()
    tally, health = Tally(), Tally()
    end = time.perf_counter() + load.steady_s

    async def client() -> None:
        while time.perf_counter() < end:
            if await target.chat(body, tally) is None:
                await asyncio.sleep(RETRY_S)

    async def crowd() -> float:
        await asyncio.gather(*(client() for _ in range(256)))
        return load.steady_s

    await _watching_health(target, health, crowd())
    require(tally, {"200", "429"})
    answered = f"{tally.statuses.get('200', 0)} x 200, {tally.statuses.get('429', 0)} x 429"
    return [
        _at_most("crowd of 256", f"p99 of 429; {answered}", tally.p99(429), 1.0),
        _at_most("crowd of 256", "p99 of /health", health.p99(200), 0.25),
    ]


async def _mixed(target: Target, load: Load) -> list[Row]:
    """Good and bad requests in random order, 16 at a time; and what memory they leave."""
    tally, draw = Tally(), random.Random(0)
    asked = [*([_photo_question(target.model)] * 3), *_bad_bodies(target.model)]
    bodies = [json.dumps(body).encode() for body in asked]
    numbers = iter(range(load.mixed))
    before = 0.0

    async def client() -> None:
        nonlocal before
        for number in numbers:
            if number == load.mixed // 10:  # pools and caches have their size by now
                before = target.memory_mb()
            await target.chat(draw.choice(bodies), tally)

    await asyncio.gather(*(client() for _ in range(16)))
    require(tally, {"200", "400", "404"})
    growth = max(target.memory_mb() - before, 0.1)
    setting = f"{load.mixed} requests: {tally.statuses}"
    return [_at_most("good and bad", setting, growth, 100.0, "MB more")]


async def _disconnects(target: Target, load: Load) -> list[Row]:
    """Clients that hang up at a random moment; how long until every place is free."""
    draw = random.Random(0)

    async def client() -> None:
        body = {**question(target.model), "max_tokens": 4000, "stream": bool(draw.getrandbits(1))}
        with suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(draw.uniform(0.01, 1.0)):
                async with target.session.post(CHAT, json=body) as response:
                    await response.read()

    for _ in range(load.disconnects // 50):
        await asyncio.gather(*(client() for _ in range(50)))
    start = time.perf_counter()
    while await target.open_places():
        await asyncio.sleep(0.01)
    setting = f"{load.disconnects} clients, until all places are free"
    return [_at_most("disconnects", setting, time.perf_counter() - start, 1.0)]


async def _streams(target: Target, load: Load) -> list[Row]:
    """64 event streams at the same time; the longest wait between two events of one."""
    health = Tally()

    async def stream() -> float:
        tokens = int(load.streams_s * STREAM_TOKENS_S)
        body = {**question(target.model), "max_tokens": tokens, "stream": True}
        longest, last, text = 0.0, None, b""
        async with target.session.post(CHAT, json=body) as response:
            async for line in response.content:
                if line.startswith(b"data: "):
                    text, moment = line, time.perf_counter()
                    longest = max(longest, moment - (last or moment))
                    last = moment
        if text != b"data: [DONE]\n":
            raise RuntimeError(f"a stream ended with {text[:80]!r}")
        return longest

    async def streams() -> float:
        return max(await asyncio.gather(*(stream() for _ in range(64))))

    gap = await _watching_health(target, health, streams())
    return [
        _at_most("64 streams", f"longest gap in {load.streams_s:g} s", gap, 1.0),
        _at_most("64 streams", "p99 of /health", health.p99(200), 0.25),
    ]


async def _watching_health(target: Target, tally: Tally, work: Awaitable[float]) -> float:
    """Do something, and ask `/health` ten times a second meanwhile."""

    async def watch() -> None:
        while True:
            start = time.perf_counter()
            async with target.session.get("/health") as response:
                await response.read()
            tally.add(response.status, time.perf_counter() - start)
            await asyncio.sleep(0.1)

    watching = asyncio.ensure_future(watch())
    try:
        return await work
    finally:
        watching.cancel()


def _photo_question(model: str) -> dict[str, Any]:
    photo = base64.b64encode(encode_jpeg(make_photo(*PHOTO_PX, seed=0))).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{photo}"}},
        {"type": "text", "text": "How many?"},
    ]
    return {**question(model), "messages": [{"role": "user", "content": content}]}


def _bad_bodies(model: str) -> list[dict[str, Any]]:
    sound = question(model)
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    remote = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}
    return [
        {**sound, "n": 10**9},
        {**sound, "messages": []},
        {**sound, "model": "another"},
        {**sound, "messages": [{"role": "user", "content": [broken]}]},
        {**sound, "messages": [{"role": "user", "content": [remote]}]},
        {**sound, "messages": [{"role": "user", "content": "word " * 20_000}]},
    ]


def _at_most(name: str, setting: str, ours: float, limit: float, unit: str = "s") -> Row:
    return Row(name=name, setting=setting, ours=ours, peer=limit, ratio=limit / ours, unit=unit)


def _at_least(name: str, setting: str, ours: float, limit: float, unit: str) -> Row:
    return Row(name=name, setting=setting, ours=ours, peer=limit, ratio=ours / limit, unit=unit)


Part = Callable[[Target, Load], Awaitable[list[Row]]]


async def _measure(port: int, pid: int, part: Part, load: Load) -> list[Row]:
    async with target_at(port, pid, "stub") as target:
        return await part(target, load)


@contextmanager
def _stub_process(settings: dict[str, Any], step_s: float) -> Iterator[tuple[int, int]]:
    port = free_port()
    arguments = ["-m", STUB, json.dumps({**settings, "port": port}), str(step_s)]
    with server_process(arguments, port) as pid:
        yield port, pid
