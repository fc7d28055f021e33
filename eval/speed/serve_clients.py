"""Servers in processes of their own, and clients that load them."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from vlm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
START_S = 180.0
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


@dataclass
class Tally:
    """What clients saw: seconds of each answer by its status; `None` is a broken connection."""

    seconds: dict[int | None, list[float]] = field(default_factory=dict)

    def add(self, status: int | None, seconds: float) -> None:
        """Note an answer."""
        self.seconds.setdefault(status, []).append(seconds)

    @property
    def statuses(self) -> dict[str, int]:
        """How many answers of each status."""
        return {str(status): len(seconds) for status, seconds in self.seconds.items()}

    def p99(self, status: int) -> float:
        """Seconds that 99 of 100 answers of a status took at most."""
        ordered = sorted(self.seconds.get(status, [float("inf")]))
        return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


@dataclass(frozen=True)
class Target:
    """A server under load, and the process that it runs in."""

    session: aiohttp.ClientSession
    model: str
    pid: int

    async def chat(self, body: bytes, tally: Tally) -> dict[str, Any] | None:
        """Post a chat in JSON and note how it went; return the answer if there is one."""
        start = time.perf_counter()
        try:
            async with self.session.post(CHAT, data=body, headers=JSON) as response:
                answer = await response.json()
        except aiohttp.ClientError:
            tally.add(None, time.perf_counter() - start)
            return None
        tally.add(response.status, time.perf_counter() - start)
        return dict(answer) if response.status == 200 else None

    async def open_places(self) -> int:
        """Places taken, as the server says."""
        async with self.session.get("/metrics") as response:
            lines = (await response.text()).splitlines()
        return int(next(float(s.split()[1]) for s in lines if s.startswith("vlm_answers_open ")))

    def memory_mb(self) -> float:
        """Resident memory of the server's process."""
        return float(psutil.Process(self.pid).memory_info().rss) / 2**20


def question(model: str, text: str = "How many?") -> dict[str, Any]:
    """A short chat without a picture."""
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8}


def require(tally: Tally, allowed: set[str]) -> None:
    """Check that clients saw no other status.

    Raises:
        RuntimeError: one did; "None" is a broken connection.
    """
    if set(tally.statuses) - allowed:
        raise RuntimeError(f"answers {tally.statuses}, allowed: {sorted(allowed)}")


@asynccontextmanager
async def target_at(port: int, pid: int, model: str) -> AsyncIterator[Target]:
    """A server on this machine, with as many connections to it as are wanted."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{port}", connector=connector, timeout=timeout
    ) as session:
        yield Target(session, model, pid)


@contextmanager
def server_process(arguments: Sequence[str], port: int) -> Iterator[int]:
    """Python with these arguments, from when it serves on `port` on; gives its process id.

    Raises:
        UserError: it does not start.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    try:
        asyncio.run(_until_ready(port, process))
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _until_ready(port: int, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + START_S
    async with target_at(port, process.pid, "") as target:
        while True:
            with suppress(aiohttp.ClientError):
                async with target.session.get("/ready") as response:
                    if response.status == 200:
                        return
            if process.poll() is not None or time.monotonic() > end:
                raise UserError("the server to be measured did not start; try `vlm serve` itself")
            await asyncio.sleep(0.1)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
