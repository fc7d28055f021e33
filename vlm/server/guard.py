"""What stands before every route: keys, sizes, times, the log.

Plain ASGI around the application. A request is refused as early as it can be: without a key before
anything is read, with a full queue before its body is, for its size while it arrives.
"""

import hmac
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vlm.server.connection import FACTS
from vlm.server.errors import ApiError, internal_error
from vlm.server.facts import RequestFacts
from vlm.server.service import Service
from vlm.server.transfer import Body, BufferBudget, ClientGoneError, Exchange, SlowClientError

logger = logging.getLogger(__name__)

OPEN_PATHS = ("/health",)
# Paths that need the engine; they are refused first when there is no place or no time left.
ENGINE_PATHS = ("/v1/chat/completions", "/v1/ask", "/v1/caption")


class Guard:
    """Checks requests before the application sees them, and logs what became of them."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._config = service.config
        self._keys = [key.get_secret_value().encode() for key in service.config.api_keys]
        self._budget = BufferBudget(service.config.max_buffered_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; lifespan events go to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, send, self._config.write_s)
        with self._logged(scope, exchange):
            try:
                await self._serve(scope, receive, exchange)
            except ApiError as error:
                await exchange.refuse(error)
            except ClientGoneError:
                pass
            except SlowClientError:
                logger.warning("a client takes no data", extra={"facts": {"id": exchange.id}})
                raise  # uvicorn closes the connection
            except Exception:
                logger.exception("a request failed", extra={"facts": {"id": exchange.id}})
                await exchange.refuse(internal_error())

    async def _serve(self, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        self._check(scope["path"], Headers(scope=scope))
        body = Body(receive, self._budget, self._config.max_body_bytes, self._config.body_s)
        try:
            await body.read()
            self._check_place(scope["path"])  # a crowd's bodies arrive together
            await self._app(scope, body.replay, exchange.send)
        finally:
            body.forget()

    def _check(self, path: str, headers: Headers) -> None:
        if path not in OPEN_PATHS and self._keys:
            given = headers.get("authorization", "").removeprefix("Bearer ").strip().encode()
            # Every key is compared, so that the time taken tells nothing.
            if not any([hmac.compare_digest(given, key) for key in self._keys]):
                raise ApiError(401, "a valid API key is needed", code="invalid_api_key")
        self._check_place(path)
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._config.max_body_bytes:
            raise ApiError(
                413,
                f"the body has {length[:20]} bytes, allowed: {self._config.max_body_bytes}",
                code="body_too_large",
            )

    def _check_place(self, path: str) -> None:
        if path in ENGINE_PATHS:
            if self._service.draining:
                raise ApiError(503, "the server is shutting down", retry_after_s=1)
            if self._service.worker.is_full:
                raise self._service.queue_full()

    @contextmanager
    def _logged(self, scope: Scope, exchange: Exchange) -> Iterator[None]:
        facts = scope[FACTS] = RequestFacts()
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "other")
            status = exchange.status or 499  # nginx's number for a client that hung up
            self._service.metrics.add_request(route, status, seconds, facts)
            about = {"id": exchange.id, "method": scope["method"], "route": route}
            about |= {"status": status, "seconds": round(seconds, 4), **facts.as_logged()}
            logger.info("request", extra={"facts": about})
