"""A server in a thread of this process, with an engine that answers at once or slowly."""

import asyncio
import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import httpx2
import pytest
from PIL import Image

from eval.speed.stub_engine import StubEngine
from vlm.chat.processor import Processor
from vlm.server.config import ServerConfig
from vlm.server.connection import close_slow_heads
from vlm.server.images import ImageSource
from vlm.server.run import http_server
from vlm.server.service import Service

ANSWER = "Two red circles.\n\nA blue square, é."
MAX_CONTEXT = 256


@dataclass
class Served:
    """A server that runs."""

    service: Service
    port: int
    engine: Any
    client: httpx2.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx2.Client(base_url=self.url, timeout=20, trust_env=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, *parts: Any, **settings: Any) -> httpx2.Response:
        """Post a chat of one message."""
        content = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 4,
            **settings,
        }
        return self.client.post("/v1/chat/completions", json=body)

    def wait_until_free(self, seconds: float = 5.0) -> None:
        """Wait until no place is taken, in the server and in the engine."""
        end = time.monotonic() + seconds
        worker = self.service.worker
        while worker.num_open or worker.num_active or worker.num_waiting:
            assert time.monotonic() < end, "places are still taken"
            time.sleep(0.01)


Serve = Callable[..., Served]


@pytest.fixture(scope="session")
def answer_ids(processor: Processor) -> list[int]:
    """Token ids of ANSWER and its end."""
    return [*processor.tokenizer.encode(ANSWER), processor.tokenizer.eot_id]


@pytest.fixture(scope="session")
def make_stub(processor: Processor, answer_ids: list[int]) -> Callable[..., StubEngine]:
    """`make_stub(**settings)`: an engine that says ANSWER."""

    def make(answer: list[int] | None = None, **settings: Any) -> StubEngine:
        end_ids = processor.tokenizer.end_ids
        return StubEngine(answer or answer_ids, end_ids=end_ids, **settings)

    return make


class _Runner:
    """Servers in threads, and their end."""

    def __init__(self, processor: Processor, make_stub: Callable[..., StubEngine]) -> None:
        self._processor = processor
        self._make_stub = make_stub
        self._running: list[tuple[Any, threading.Thread, Served]] = []

    def serve(
        self,
        engine: Any = None,
        source: ImageSource | None = None,
        service: Service | None = None,
        **settings: Any,
    ) -> Served:
        """Serve with an engine of one's own, or one that says ANSWER; or a whole service."""
        if service is None:
            config = ServerConfig.model_validate({"name": "tiny", **settings})
            engine = engine or self._make_stub(slots=config.slots)
            max_context = config.max_context or MAX_CONTEXT
            service = Service(self._processor, engine, max_context, config, "tiny", source)
        config = service.config
        server = http_server(service)
        listener = socket.create_server(("127.0.0.1", 0), backlog=2048)

        async def main() -> None:
            sweep = asyncio.create_task(
                close_slow_heads(server.server_state.connections, config.head_s)
            )
            await server.serve(sockets=[listener])
            sweep.cancel()

        thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
        port = listener.getsockname()[1]
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        served = Served(service, port, engine)
        self._running.append((server, thread, served))
        return served

    def stop(self) -> None:
        for server, thread, served in self._running:
            served.client.close()
            server.should_exit = True
            server.force_exit = True
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def runner(processor: Processor, make_stub: Callable[..., StubEngine]) -> Iterator[_Runner]:
    found = _Runner(processor, make_stub)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def served(runner: _Runner) -> Served:
    """A server with default settings, for all tests of a file."""
    return runner.serve()


@pytest.fixture(scope="module")
def serve(runner: _Runner) -> Serve:
    """`serve(engine, source, service, **settings)`: another server; it ends with the file's tests.

    All are optional, see `_Runner.serve`.
    """
    return runner.serve


@pytest.fixture(scope="session")
def encoded(picture: Callable[..., Image.Image]) -> Callable[..., bytes]:
    """`encoded(seed, kind="PNG", **size)`: the bytes of a picture file."""

    def make(seed: int = 0, kind: str = "PNG", **size: int) -> bytes:
        file = BytesIO()
        picture(seed, **size).save(file, kind)
        return file.getvalue()

    return make


def data_uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@pytest.fixture(scope="session")
def image_part(encoded: Callable[..., bytes]) -> Callable[..., dict[str, Any]]:
    """`image_part(seed)` or `image_part(url="...")`: an image of a message."""

    def make(seed: int = 0, url: str | None = None, **size: int) -> dict[str, Any]:
        return {
            "type": "image_url",
            "image_url": {"url": url or data_uri(encoded(seed, **size))},
        }

    return make


@pytest.fixture(scope="session")
def text_part() -> Callable[[str], dict[str, str]]:
    return lambda text: {"type": "text", "text": text}
