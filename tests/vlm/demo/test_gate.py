"""Which requests reach gradio."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from vlm.demo.gate import MAX_JSON_BYTES, Gate

JOIN = "/gradio_api/queue/join"
PASSED = 204


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """What stands behind the gate: says PASSED, and hands back what it received."""
    message = await receive()
    await send({"type": "http.response.start", "status": PASSED, "headers": []})
    await send({"type": "http.response.body", "body": message.get("body", b"")})


def ask(
    uploads: Path, method: str, path: str, body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    """Send a request in pieces; return the status, the headers and the body of the answer."""
    half = len(body) // 2
    pending = [
        {"type": "http.request", "body": body[:half], "more_body": True},
        {"type": "http.request", "body": body[half:], "more_body": False},
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return pending.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": []}
    asyncio.run(Gate(echo, uploads)(scope, receive, send))
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, sent[1]["body"]


def join(uploads: Path, data: Any) -> int:
    status, _, _ = ask(uploads, "POST", JOIN, json.dumps({"data": data}).encode())
    return status


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/config"),
        ("GET", "/theme.css"),
        ("GET", "/static/fonts/a.woff2"),
        ("GET", "/assets/index.js"),
        ("HEAD", "/gradio_api/queue/data"),
        ("GET", "/gradio_api/heartbeat/s1"),
        ("GET", "/gradio_api/file=/tmp/x/a.png"),
        ("POST", "/gradio_api/upload"),
    ],
)
def test_what_the_page_needs_passes(method: str, path: str, tmp_path: Path) -> None:
    assert ask(tmp_path, method, path)[0] == PASSED


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/gradio_api/file=http://127.0.0.1/"),
        ("GET", "/gradio_api/file=HTTPS://example.com/"),
        ("GET", "/gradio_api/proxy=http://127.0.0.1/"),
        ("GET", "/monitoring"),
        ("GET", "/docs"),
        ("GET", "/gradio_api/upload"),
        ("POST", "/"),
        ("POST", "/gradio_api/run/describe"),
        ("POST", "/gradio_api/process_recording"),
        ("PUT", "/gradio_api/upload"),
    ],
)
def test_nothing_else_does(method: str, path: str, tmp_path: Path) -> None:
    assert ask(tmp_path, method, path)[0] == 404


def test_requests_may_name_uploaded_files_only(tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    (uploads / "hash").mkdir(parents=True)
    (tmp_path / "secret").write_text("")
    (uploads / "link").symlink_to(tmp_path / "secret")
    mine = {"path": str(uploads / "hash" / "a.png"), "meta": {"_type": "gradio.FileData"}}
    assert join(uploads, [mine, "text", {"text": "hi", "files": [mine, mine]}]) == PASSED
    for path in (
        str(tmp_path / "secret"),
        str(uploads / ".." / "secret"),
        str(uploads / "link"),
        f"{uploads}-beside/a.png",
        f"file://{uploads}/a.png",
        "http://127.0.0.1/a.png",
        "\0",
        7,
        [str(uploads / "a.png")],
    ):
        assert join(uploads, [{"text": "", "files": [mine, {**mine, "path": path}]}]) == 400, path
    direct = json.dumps({"data": [{**mine, "path": "/etc/hostname"}]}).encode()
    assert ask(uploads, "POST", "/gradio_api/run/predict", direct)[0] == 400
    assert join(uploads, [{**mine, "path": None, "url": "data:image/png;base64,AA"}]) == 400
    escaped = b'{"data": [{"p\\u0061th": "/etc/hostname"}]}'
    assert ask(uploads, "POST", JOIN, escaped)[0] == 400


def test_a_body_arrives_as_it_was_sent(tmp_path: Path) -> None:
    body = json.dumps({"data": ["x" * 1000, None, 1]}).encode()
    assert ask(tmp_path, "POST", JOIN, body)[::2] == (PASSED, body)


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"no json", 400), (b"[" * 100_000, 400), (b" " * (MAX_JSON_BYTES + 1), 413)],
    ids=["no JSON", "deep", "large"],
)
def test_a_body_that_no_page_sends_is_refused(body: bytes, status: int, tmp_path: Path) -> None:
    assert ask(tmp_path, "POST", JOIN, body)[0] == status


@pytest.mark.parametrize("path", ["/", "/nothing"])
def test_every_answer_keeps_the_page_to_itself(path: str, tmp_path: Path) -> None:
    _, headers, _ = ask(tmp_path, "GET", path)
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
