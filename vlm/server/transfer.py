"""Bytes to and from a client, bounded in size and time."""

import asyncio
import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from vlm.server.errors import ApiError

REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


class ClientGoneError(Exception):
    """The client hung up before its request was whole."""


class SlowClientError(Exception):
    """A client does not take what is written to it."""


class BufferBudget:
    """Bytes that all requests together may hold."""

    def __init__(self, max_bytes: int) -> None:
        self._free_bytes = max_bytes

    def take(self, num_bytes: int) -> None:
        """Reserve memory.

        Raises:
            ApiError: there is no more.
        """
        if num_bytes > self._free_bytes:
            raise ApiError(
                429, "too many large requests at once: try later", code="busy", retry_after_s=1
            )
        self._free_bytes -= num_bytes

    def give_back(self, num_bytes: int) -> None:
        """Give memory back."""
        self._free_bytes += num_bytes


class Body:
    """A request's body: read whole, within its limits, then handed to the application."""

    def __init__(
        self, receive: Receive, budget: BufferBudget, max_bytes: int, seconds: float
    ) -> None:
        self._receive = receive
        self._budget = budget
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._num_bytes = 0
        self._message: Message | None = None

    async def read(self) -> None:
        """Read it.

        Raises:
            ApiError: too large, too slow, or no memory for it.
            ClientGoneError: it ends before its end.
        """
        chunks = []
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    chunks.append(self._admitted(message.get("body", b"")))
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise ApiError(
                408, f"the body did not arrive in {self._seconds:g} s", code="timeout"
            ) from None
        self._message = {"type": "http.request", "body": b"".join(chunks), "more_body": False}

    async def replay(self) -> Message:
        """Give the body once, then what else the connection brings."""
        message, self._message = self._message, None
        return await self._receive() if message is None else message

    def forget(self) -> None:
        """Give its memory back."""
        self._budget.give_back(self._num_bytes)
        self._num_bytes = 0

    def _admitted(self, chunk: bytes) -> bytes:
        if self._num_bytes + len(chunk) > self._max_bytes:
            raise ApiError(
                413, f"the body has more than {self._max_bytes} bytes", code="body_too_large"
            )
        self._budget.take(len(chunk))
        self._num_bytes += len(chunk)
        return chunk


class Exchange:
    """One answer on its way to the client.

    id: the client's `x-request-id`, or one made for it; the answer carries it.
    status: of the answer, once it has begun.
    """

    def __init__(self, scope: Scope, send: Send, write_s: float) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        self.id = given if REQUEST_ID.fullmatch(given) else uuid4().hex
        self.status: int | None = None
        self._scope = scope
        self._send = send
        self._write_s = write_s

    async def send(self, message: Message) -> None:
        """Send a part of the answer.

        Raises:
            SlowClientError: the client does not take it.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.id
            if self.status == 408:
                headers["connection"] = "close"
        try:
            async with asyncio.timeout(self._write_s):
                await self._send(message)
        except TimeoutError:
            raise SlowClientError from None

    async def refuse(self, error: ApiError) -> None:
        """Send an error, unless the answer has begun."""
        if self.status is None:
            await error.response()(self._scope, _nothing, self.send)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}
