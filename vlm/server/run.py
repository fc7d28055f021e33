"""Serving until a signal: start, drain, end."""

import asyncio
import logging
import resource
import signal
import socket
from contextlib import suppress
from typing import Any

import uvicorn

from vlm.errors import UserError
from vlm.server.app import create_app
from vlm.server.connection import close_slow_heads
from vlm.server.facts import log_to_stderr
from vlm.server.service import Service

logger = logging.getLogger(__name__)

BACKLOG = 2048
POLL_S = 0.05
LAST_BYTES_S = 2  # for what was written last to reach its client


def serve(service: Service) -> None:
    """Serve until SIGTERM or Ctrl-C; then finish what is in flight, and return.

    While it finishes, new questions get 503 and `/ready` says no. A second signal ends at once.

    Raises:
        UserError: the address cannot be listened on.
    """
    listener = _listen(service.config.host, service.config.port)
    log_to_stderr()
    _allow_many_files()
    asyncio.run(_serve(service, listener))


def http_server(service: Service) -> uvicorn.Server:
    """The HTTP server of a model; `close_slow_heads` watches its connections."""
    config = uvicorn.Config(
        create_app(service),
        # Named, since what else is installed would change how requests are read.
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        backlog=BACKLOG,
        server_header=False,
        timeout_keep_alive=service.config.keep_alive_s,
        timeout_graceful_shutdown=LAST_BYTES_S,
    )
    return uvicorn.Server(config)


async def _serve(service: Service, listener: socket.socket) -> None:
    server = http_server(service)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not (server.started or serving.done()):
        await asyncio.sleep(POLL_S)
    loop, asked_to_end = asyncio.get_running_loop(), asyncio.Event()

    def end() -> None:
        if asked_to_end.is_set():
            server.force_exit = True
            server.should_exit = True
        asked_to_end.set()

    # uvicorn's own handlers raise the signal again after the shutdown: the exit code would be its.
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    host, port = listener.getsockname()[:2]
    logger.info("serving", extra={"facts": {"model": service.name, "host": host, "port": port}})
    connections: Any = server.server_state.connections
    sweep = asyncio.create_task(close_slow_heads(connections, service.config.head_s))
    ending = asyncio.create_task(asked_to_end.wait())
    await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
    if not serving.done():
        await _drain(service, server)
    server.should_exit = True
    await serving
    for task in (sweep, ending):
        task.cancel()


async def _drain(service: Service, server: uvicorn.Server) -> None:
    service.draining = True
    logger.info("draining", extra={"facts": {"answers": service.worker.num_open}})
    with suppress(TimeoutError):
        async with asyncio.timeout(service.config.drain_s):
            while service.worker.num_open and not server.force_exit:
                await asyncio.sleep(POLL_S)
    logger.info("drained", extra={"facts": {"unfinished": service.worker.num_open}})


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port"
        ) from error


def _allow_many_files() -> None:
    """Every connection is an open file; systems often allow 1,024 at first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 65_536)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
