"""One request's connection: who is gone, who is slow, what is logged."""

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any, Protocol, TypeVar

from fastapi import Request

from vlm.server.errors import ApiError
from vlm.server.facts import RequestFacts

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

FACTS = "vlm.facts"  # where a request's scope holds its RequestFacts
CLIENT_GONE = 499  # nginx's number; nobody receives it, the log has it
SWEEP_S = 0.5


def facts_of(request: Request) -> RequestFacts:
    """What is to be logged of a request."""
    facts: RequestFacts = request.scope[FACTS]
    return facts


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return what `work` returns; cancel it when the client hangs up.

    Raises:
        ApiError: the client has hung up.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(CLIENT_GONE, "the client is gone")
        return task.result()
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Cycle(Protocol):
    response_complete: bool


class ServedConnection(Protocol):
    """uvicorn's protocol of a connection, as far as it is looked at.

    timeout_keep_alive_task: runs while a connection is idle between two requests.
    """

    cycle: _Cycle | None
    transport: asyncio.Transport
    timeout_keep_alive_task: asyncio.TimerHandle | None


async def close_slow_heads(connections: Iterable[ServedConnection], head_s: float) -> None:
    """Close connections that take longer than `head_s` over a request's head; runs for ever.

    uvicorn limits the time between requests only. A connection whose first bytes never come, whose
    head arrives in drips, or whose body goes on after it was refused, would stay.
    """
    loop = asyncio.get_running_loop()
    since: dict[ServedConnection, tuple[_Cycle | None, float]] = {}
    while True:
        await asyncio.sleep(min(SWEEP_S, head_s / 4))
        heads = [connection for connection in connections if _awaits_head(connection)]
        since = {c: since[c] for c in heads if c in since and since[c][0] is c.cycle}
        num_closed = 0
        for connection in heads:
            _, start = since.setdefault(connection, (connection.cycle, loop.time()))
            if loop.time() - start >= head_s:
                connection.transport.abort()
                num_closed += 1
        if num_closed:
            logger.info("closed idle connections", extra={"facts": {"connections": num_closed}})


def _awaits_head(connection: ServedConnection) -> bool:
    if connection.transport.is_closing():
        return True  # and its client does not take the last bytes
    if connection.cycle is not None and not connection.cycle.response_complete:
        return False
    return connection.timeout_keep_alive_task is None
