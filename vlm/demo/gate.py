"""What stands before gradio's routes: only what the page needs, and of files only uploaded ones.

Gradio has routes for much that this page does not offer, and takes a file's URL or path from
whoever calls it. Here a request may name uploaded files only, so nothing is fetched for a client
and nothing else of this machine is read. The page in turn may load nothing from elsewhere.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

READ = re.compile(
    r"/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)?/?"
    r"|/(static|assets|svelte)/.*"
    r"|/gradio_api/(info|app_id|startup-events|upload_progress|queue/data)/?"
    r"|/gradio_api/(heartbeat/\w+|file=(?!(?i:https?:)).*)"
)
UPLOAD = "/gradio_api/upload"
# What browsers post as JSON.
POSTED = re.compile(r"/gradio_api/(queue/join|run/predict|cancel|reset)/?")
MAX_JSON_BYTES = 4 * 2**20
# The page is built with scripts and styles of its own in its text; blobs are pictures being shown.
CONTENT_SECURITY_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; "
    "frame-ancestors 'self'; object-src 'none'"
)


class RefusedError(Exception):
    """A request that is not taken: its status and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Gate:
    """Plain ASGI around gradio's application.

    Args:
        uploads: the folder that gradio keeps uploaded files in.
    """

    def __init__(self, app: ASGIApp, uploads: Path) -> None:
        self._app = app
        self._uploads = uploads.resolve()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request; lifespan events go to the application."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = CONTENT_SECURITY_POLICY
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
            await send(message)

        try:
            receive = await self._admitted(scope, receive)
        except RefusedError as error:
            response = PlainTextResponse(str(error), error.status)
            await response(scope, receive, send_guarded)
            return
        await self._app(scope, receive, send_guarded)

    async def _admitted(self, scope: Scope, receive: Receive) -> Receive:
        """What the application may receive of a request.

        Raises:
            RefusedError: the route is not offered, or the body is none that the page sends.
        """
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD") and READ.fullmatch(path):
            return receive
        if method == "POST" and path.rstrip("/") == UPLOAD:
            return receive
        if method != "POST" or not POSTED.fullmatch(path):
            raise RefusedError(404, "there is nothing here")
        body = await _read(receive)
        for named in _files(_parsed(body)):
            if not isinstance(named, str) or not self._is_upload(named):
                raise RefusedError(400, "a file must be uploaded first")
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return replay

    def _is_upload(self, path: str) -> bool:
        try:
            return Path(path).resolve().is_relative_to(self._uploads)
        except (OSError, ValueError):
            return False


async def _read(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RefusedError(400, "the request ended early")
        body += message.get("body", b"")
        if len(body) > MAX_JSON_BYTES:
            raise RefusedError(413, f"the request has more than {MAX_JSON_BYTES} bytes")
        if not message.get("more_body", False):
            return body


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(400, "the request is no JSON") from None


def _files(value: Any) -> Iterator[Any]:
    """Every path and inline URL of a file in a request."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if item.get("path") is not None:
                yield item["path"]
            if str(item.get("url") or "").startswith("data:"):
                yield item["url"]
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
