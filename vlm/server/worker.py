"""The thread that owns the engine, and what the event loop sees of it.

The engine is not thread-safe, so one thread alone calls it: it takes requests and cancellations
from a queue, steps, and hands every step's events to the event loop in one call.
"""

import asyncio
import logging
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol

from vlm.engine.request import Event, Request

logger = logging.getLogger(__name__)


class Engine(Protocol):
    """What is needed of an engine; `vlm.engine.engine.Engine` is one."""

    @property
    def num_active(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...

    def submit(self, request: Request) -> int: ...

    def cancel(self, request_id: int) -> None: ...

    def step(self) -> list[Event]: ...


class QueueFullError(Exception):
    """More answers are asked for than may run and wait."""


class GenerationError(Exception):
    """The engine could not finish an answer; the message is for the log."""


@dataclass(eq=False)
class Ticket:
    """A request that the engine has or will get, and where its events go."""

    request: Request
    events: "asyncio.Queue[tuple[Ticket, Event]]"
    ended: bool = False


class Lease:
    """One HTTP request's part of the engine: its places, its requests, their events.

    Closing it cancels what is not finished and gives the places back.
    """

    def __init__(self, worker: "EngineWorker") -> None:
        self._worker = worker
        self._num_places = 0
        self._tickets: list[Ticket] = []
        self._events: asyncio.Queue[tuple[Ticket, Event]] = asyncio.Queue()

    def take(self, num_places: int) -> None:
        """Reserve places.

        Raises:
            QueueFullError: there are not so many.
            GenerationError: the engine's thread has ended.
        """
        self._worker.reserve(num_places)
        self._num_places += num_places

    def submit(self, request: Request) -> None:
        """Hand a request to the engine, in one of the places; they are numbered from 0."""
        ticket = Ticket(request, self._events)
        self._tickets.append(ticket)
        self._worker.submit(ticket)

    @property
    def has_requests(self) -> bool:
        """Whether the engine was handed anything."""
        return bool(self._tickets)

    @property
    def has_ended(self) -> bool:
        """Whether every request has ended."""
        return all(ticket.ended for ticket in self._tickets)

    async def next_event(self, patience_s: float) -> tuple[int, Event] | None:
        """Return the number of a request and what became of it; None if nothing came in time.

        Raises:
            GenerationError: it failed.
        """
        try:
            async with asyncio.timeout(patience_s):
                ticket, event = await self._events.get()
        except TimeoutError:
            return None
        if event.error is not None:
            ticket.ended = True
            raise GenerationError(event.error)
        index = self._tickets.index(ticket)
        if ticket.ended:  # what was on its way when the request was stopped
            return await self.next_event(patience_s)
        ticket.ended = event.finish_reason is not None
        return index, event

    def stop(self, index: int) -> None:
        """End a request."""
        ticket = self._tickets[index]
        if not ticket.ended:
            ticket.ended = True
            self._worker.cancel(ticket)

    def close(self) -> None:
        """Cancel what is not finished, and give the places back."""
        for index in range(len(self._tickets)):
            self.stop(index)
        self._worker.release(self._num_places)
        self._num_places = 0


class EngineWorker:
    """Runs an engine in a thread of its own.

    num_open: places taken: answers being prepared, waiting or running.
    """

    def __init__(self, engine: Engine, max_open: int) -> None:
        self.max_open = max_open
        self.num_open = 0
        self._engine = engine
        self._commands: SimpleQueue[_Submit | _Cancel | None] = SimpleQueue()
        self._tickets: dict[int, Ticket] = {}  # the thread's
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether requests are being served."""
        return self._thread.is_alive()

    @property
    def is_full(self) -> bool:
        """Whether no place is free."""
        return self.num_open >= self.max_open

    @property
    def num_active(self) -> int:
        """Answers being generated."""
        return self._engine.num_active

    @property
    def num_waiting(self) -> int:
        """Answers that wait for a slot."""
        return self._engine.num_waiting

    def start(self) -> None:
        """Start the thread; events go to the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End the thread after its current step."""
        if self._thread.is_alive():
            self._commands.put(None)
            self._thread.join(timeout_s)

    def reserve(self, num_places: int) -> None:
        """See `Lease.take`."""
        if not self.is_alive:
            raise GenerationError("the engine's thread has ended")
        if self.num_open + num_places > self.max_open:
            raise QueueFullError
        self.num_open += num_places

    def release(self, num_places: int) -> None:
        """Give places back."""
        self.num_open -= num_places

    def submit(self, ticket: Ticket) -> None:
        """Hand a request to the engine before its next step."""
        self._commands.put(_Submit(ticket))

    def cancel(self, ticket: Ticket) -> None:
        """Stop a request before the engine's next step."""
        self._commands.put(_Cancel(ticket))

    def _run(self) -> None:
        try:
            while self._obey():
                self._step()
        except Exception:
            logger.exception("the engine's thread ended")
            self._fail(self._tickets.values(), "the engine's thread ended")

    def _obey(self) -> bool:
        """Carry out what was asked meanwhile; wait for it if the engine has nothing to do."""
        idle = not (self._engine.num_active or self._engine.num_waiting)
        with suppress(Empty):
            while True:
                command = self._commands.get(block=idle)
                if command is None:
                    return False
                idle = False
                if isinstance(command, _Submit):
                    self._submit(command.ticket)
                else:
                    self._cancel(command.ticket)
        return True

    def _submit(self, ticket: Ticket) -> None:
        try:
            self._tickets[self._engine.submit(ticket.request)] = ticket
        except Exception as error:
            logger.exception("the engine refused a request")
            self._fail([ticket], f"{type(error).__name__}: {error}")

    def _cancel(self, ticket: Ticket) -> None:
        for request_id, known in self._tickets.items():
            if known is ticket:
                self._engine.cancel(request_id)
                del self._tickets[request_id]
                return

    def _step(self) -> None:
        try:
            events = self._engine.step()
        except Exception as error:
            # The engine reports a request that fails by an event; this is worse.
            logger.exception("a step of the engine failed")
            self._fail(self._tickets.values(), f"{type(error).__name__}: {error}")
            for request_id in self._tickets:
                self._engine.cancel(request_id)
            self._tickets.clear()
            return
        told = []
        for event in events:
            ticket = self._tickets.get(event.request_id)
            if ticket is None:
                continue
            told.append((ticket, event))
            if event.error is not None or event.finish_reason is not None:
                del self._tickets[event.request_id]
        self._tell(told)

    def _fail(self, tickets: Iterable[Ticket], reason: str) -> None:
        self._tell([(ticket, Event(request_id=-1, error=reason)) for ticket in tickets])

    def _tell(self, told: list[tuple[Ticket, Event]]) -> None:
        assert self._loop is not None
        if told:
            with suppress(RuntimeError):  # the event loop is closed: nobody listens
                self._loop.call_soon_threadsafe(_deliver, told)


@dataclass(frozen=True)
class _Submit:
    ticket: Ticket


@dataclass(frozen=True)
class _Cancel:
    ticket: Ticket


def _deliver(told: list[tuple[Ticket, Event]]) -> None:
    for ticket, event in told:
        ticket.events.put_nowait((ticket, event))
