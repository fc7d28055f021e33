"""Each fault of a server, provoked: what the client sees, and what is not lost.

The numbers are the rows of the project's table of faults.
"""

import asyncio
import base64
import json
import os
import resource
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from vlm.server.config import ServerConfig
from vlm.server.fetch import Fetcher, FetchError, look_up
from vlm.server.images import ImageSource

ROOT = Path(__file__).resolve().parents[3]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "How many?"}]}


def error_of(response: httpx2.Response, status: int = 400) -> dict[str, Any]:
    """The error that a response brings, in OpenAI's form."""
    assert response.status_code == status, response.text
    (name,) = response.json()
    assert name == "error"
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error


def is_healthy(served: Any) -> bool:
    return bool(served.client.get("/health").json() == {"status": "ok"})


# 29. Malformed requests.


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "messages[0].content[0]",
        ),
        ({"n": 10**9}, "n"),
        ({"n": 10**30}, "n"),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"seed": 2**70}, "seed"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"\ud800": 1}, None),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages"),
    ],
    ids=str,
)
def test_29_a_malformed_request_names_its_param(
    served: Any, change: dict[str, Any], param: str | None
) -> None:
    body = json.dumps({**ASKED, **change})
    headers = {"content-type": "application/json"}
    response = served.client.post("/v1/chat/completions", content=body, headers=headers)
    assert error_of(response)["param"] == param
    assert is_healthy(served)


@pytest.mark.parametrize("body", [b"{", b"", b"[]", b"null", b"[" * 100_000, b'{"n": 1e', b"\xff"])
def test_29_what_is_no_json_object_is_refused(served: Any, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    error_of(served.client.post("/v1/chat/completions", content=body, headers=headers))
    assert is_healthy(served)


# 30. Bodies over the limit.


def resident_kb(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise AssertionError(name)


@contextmanager
def memory_growth_mb(allowed: float) -> Iterator[None]:
    """Check how far this process, which the server runs in, grew at its largest."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_kb("VmRSS")
    yield
    assert (resident_kb("VmHWM") - before) / 1024 < allowed


@LINUX
def test_30_a_body_over_the_limit_is_refused_whether_announced_or_not(serve: Any) -> None:
    served = serve(max_body_bytes=100_000)
    chunk = b" " * 65_536

    def endless() -> Iterator[bytes]:
        for _ in range(1000):  # 64 MB
            yield chunk

    with memory_growth_mb(20):
        announced = served.client.post("/v1/ask", content=b" " * 200_000)
        assert error_of(announced, 413)["code"] == "body_too_large"
        chunked = served.client.post("/v1/chat/completions", content=endless())
        assert error_of(chunked, 413)["code"] == "body_too_large"
    assert is_healthy(served)


def test_30_all_bodies_together_are_limited(serve: Any) -> None:
    served = serve(max_body_bytes=60_000, max_buffered_bytes=60_000)
    with socket.create_connection(("127.0.0.1", served.port)) as slow:
        slow.sendall(b"POST /v1/ask HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\n")
        slow.sendall(b" " * 40_000)
        time.sleep(0.1)
        refused = served.client.post("/v1/ask", content=b" " * 30_000)
        assert error_of(refused, 429)["code"] == "busy" and refused.headers["retry-after"]
    time.sleep(0.1)
    assert served.client.post("/v1/ask", content=b" " * 30_000).status_code == 400


# 31. What is no image.


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,!!!!",
        "data:image/png;base64,AAAA",
        "data:image/png;base64,",
        "data:image/png,AAAA",
        "data:;base64,AAAA",
        "data:image/png;base64," + base64.b64encode(b"%!PS-Adobe-3.0 EPSF").decode(),
        "data:image/svg+xml;base64," + base64.b64encode(b"<svg/>").decode(),
        "no url",
        "",
        "ftp://example.com/a.png",
    ],
)
def test_31_what_is_no_image_is_refused_without_addresses_or_paths(
    served: Any, image_part: Any, url: str
) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    error = error_of(served.ask({"type": "text", "text": "What?"}, part))
    assert error["param"] == "messages[0].content[1].image_url.url"
    assert "0x" not in error["message"] and "/tmp" not in error["message"]
    assert "site-packages" not in error["message"] and "BytesIO" not in error["message"]
    assert is_healthy(served)


def test_31_a_truncated_image_and_an_empty_upload_are_refused(
    served: Any, image_part: Any, encoded: Callable[..., bytes]
) -> None:
    content = encoded(1, "JPEG", width_px=64, height_px=64)
    uri = "data:image/jpeg;base64," + base64.b64encode(content[: len(content) // 2]).decode()
    error_of(served.ask(image_part(url=uri)))
    for upload in (b"", b"text", content[:200]):
        response = served.client.post("/v1/caption", files={"image": ("a.jpg", upload)})
        assert error_of(response)["param"] == "image[0]"


# 32. A decompression bomb.


def bomb(side_px: int) -> bytes:
    """A PNG of few bytes and many black pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    packer = zlib.compressobj(9)
    row = bytes(1 + (side_px + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(side_px)) + packer.flush()
    head = struct.pack(">IIBBBBB", side_px, side_px, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@LINUX
def test_32_a_decompression_bomb_is_refused_by_its_header(served: Any, image_part: Any) -> None:
    content = bomb(20_000)
    assert len(content) < 100_000  # for 1.2 GB of RGB
    part = image_part(url="data:image/png;base64," + base64.b64encode(content).decode())
    served.ask("warm")
    with memory_growth_mb(50):
        seconds = []
        for _ in range(3):  # the best of three: another process may be using the processor
            start = time.perf_counter()
            error = error_of(served.ask(part))
            seconds.append(time.perf_counter() - start)
    assert "too many pixels" in error["message"]
    assert min(seconds) < 0.1


# 33. Requests that the server is to make to where it must not.


@dataclass
class Sink:
    """Listens on the loopback and counts who comes."""

    listener: socket.socket
    connections: list[Any] = field(default_factory=list)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            connection.close()


@pytest.fixture
def sink() -> Iterator[Sink]:
    """On every address of the machine, so that nothing sent to a loopback address is missed."""
    with socket.create_server(("0.0.0.0", 0)) as listener:
        found = Sink(listener)
        threading.Thread(target=found.run, daemon=True).start()
        with socket.create_connection(("127.0.0.1", found.port)):
            pass
        end = time.monotonic() + 5
        while not found.connections:  # it counts
            assert time.monotonic() < end
            time.sleep(0.01)
        found.connections.clear()
        yield found


LOOPBACK = ("127.", "::1", "::ffff:127.", "0.0.0.0")
DNS_PORT = 53


class Dialled:
    """Notes every address that this process connects to, and lets none be another machine's."""

    def __init__(self) -> None:
        self.addresses: list[Any] = []
        self.listening = False
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: Any) -> None:
        if self.listening and event == "socket.connect":
            address = arguments[1]
            self.addresses.append(address)
            local = not isinstance(address, tuple) or address[0].startswith(LOOPBACK)
            if not local and address[1] != DNS_PORT:
                raise PermissionError("a test was about to call another machine")


@pytest.fixture(scope="module")
def dialled() -> Dialled:
    return Dialled()  # an audit hook cannot be taken back


FORBIDDEN = [
    "http://127.0.0.1:{port}/",
    "http://localhost:{port}/",
    "http://LOCALHOST.:{port}/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::ffff:127.0.0.1]:{port}/",
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::1]:{port}/",
    "http://[::]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/",
    "http://[2002:7f00:1::]:{port}/",
    "http://2130706433:{port}/",
    "http://0x7f000001:{port}/",
    "http://0177.0.0.1:{port}/",
    "http://127.1:{port}/",
    "http://127.0.0.2:{port}/",
    "http://0.0.0.0:{port}/",
    "http://10.0.0.1:{port}/",
    "http://192.168.0.1/",
    "http://100.64.0.1/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://images.example\\@127.0.0.1:{port}/",
    "http://images.example@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}#@images.example/",
    "http:\\\\127.0.0.1:{port}/",
    "http:127.0.0.1:{port}/",
    "http:///127.0.0.1:{port}/",
    "HTTP://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\t/",
    "http://①②⑦.⓪.⓪.①:{port}/",
    "http://127.0.0.1%00.images.example:{port}/",
    "gopher://127.0.0.1:{port}/",
    "http://127.0.0.1:99999/",
]


async def only_loopback(host: str) -> list[str]:
    """The machine's resolver for what is no real name; no test asks the network."""
    assert not host.endswith(".example"), "a test asked for a name"
    return await look_up(host)


@pytest.fixture(scope="module")
def fetching(serve: Any) -> Any:
    """A server that fetches from every host, public addresses only."""
    config = ServerConfig(allow_image_hosts=("*",))
    fetcher = Fetcher(("*",), (), config.max_image_bytes, 5.0, only_loopback)
    return serve(source=ImageSource(config, fetcher))


@pytest.mark.parametrize("url", FORBIDDEN)
def test_33_no_packet_goes_to_an_address_that_is_not_public(
    fetching: Any, image_part: Any, sink: Sink, dialled: Dialled, url: str
) -> None:
    dialled.addresses.clear()
    dialled.listening = True
    try:
        error = error_of(fetching.ask(image_part(url=url.format(port=sink.port))))
    finally:
        dialled.listening = False
    assert error["param"] == "messages[0].content[0].image_url.url"
    # This process is the client too: it may call the server and a resolver's socket, no other.
    others = [a for a in dialled.addresses if isinstance(a, tuple) and a[1] != fetching.port]
    assert [address for address in others if address[1] != DNS_PORT] == []
    assert sink.connections == []


def test_33_nothing_is_fetched_unless_allowed(
    served: Any, serve: Any, image_part: Any, sink: Sink
) -> None:
    url = f"http://127.0.0.1:{sink.port}/a.png"
    assert error_of(served.ask(image_part(url=url)))["code"] == "image_url_not_allowed"
    listed = serve(allow_image_hosts=["images.example", "*.pictures.example"])
    for host in ("127.0.0.1", "example", "evil-images.example", "pictures.example", "localhost"):
        url = f"http://{host}:{sink.port}/a.png"
        assert "list" in error_of(listed.ask(image_part(url=url)))["message"]
    assert sink.connections == []


class Host(BaseHTTPRequestHandler):
    """Pictures, redirects, and picture hosts that never end."""

    png = b""
    elsewhere = ""
    asked: list[str] = []  # noqa: RUF012 - shared by all connections, as is meant

    def do_GET(self) -> None:
        Host.asked.append(self.path)
        match self.path:
            case "/a.png":
                self.answer(200, {"Content-Length": str(len(self.png))}, self.png)
            case "/redirect":
                self.answer(302, {"Location": self.elsewhere})
            case "/missing":
                self.answer(404, {"Content-Length": "0"})
            case "/page":
                self.answer(200, {"Content-Length": "6"}, b"<html>")
            case "/endless":
                self.answer(200, {})
                self.pour(b"\0" * 65_536, 0)
            case "/dripping":
                self.answer(200, {"Content-Length": "1000000"})
                self.pour(b"\0", 0.05)
            case "/silent":
                time.sleep(3)

    def answer(self, status: int, headers: dict[str, str], content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def pour(self, piece: bytes, pause_s: float) -> None:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                self.wfile.write(piece)
            except OSError:
                return
            time.sleep(pause_s)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def host(encoded: Callable[..., bytes]) -> Iterator[ThreadingHTTPServer]:
    """On 127.0.0.2, where nothing else listens."""
    Host.png = encoded(5)
    with ThreadingHTTPServer(("127.0.0.2", 0), Host) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@dataclass
class Resolver:
    """Gives a name another address each time that it is asked."""

    answers: list[list[str]]
    asked: list[str] = field(default_factory=list)

    async def __call__(self, host: str) -> list[str]:
        self.asked.append(host)
        return self.answers[min(len(self.asked), len(self.answers)) - 1]


def fetcher_for(resolve: Resolver, max_bytes: int = 100_000, timeout_s: float = 1.0) -> Fetcher:
    """Fetches from `images.example`, which may lie on 127.0.0.2."""
    networks = ServerConfig(allow_image_networks=("127.0.0.2/32",)).allow_image_networks  # type: ignore[arg-type]
    return Fetcher(("images.example",), networks, max_bytes, timeout_s, resolve)


def test_33_a_picture_is_fetched_from_the_address_that_was_checked(
    host: ThreadingHTTPServer, sink: Sink
) -> None:
    """DNS rebinding: the second answer would be another machine's; nobody asks for it."""
    resolve = Resolver([["127.0.0.2"], ["127.0.0.1"]])
    url = f"http://images.example:{host.server_port}/a.png"
    assert asyncio.run(fetcher_for(resolve).fetch(url)) == Host.png
    assert resolve.asked == ["images.example"] and sink.connections == []


@pytest.mark.parametrize("answers", [["127.0.0.1"], ["127.0.0.2", "127.0.0.1"], ["::1"], []])
def test_33_a_name_with_one_forbidden_address_is_not_connected_to(
    sink: Sink, answers: list[str]
) -> None:
    with pytest.raises(FetchError, match="address"):
        url = f"http://images.example:{sink.port}/"
        asyncio.run(fetcher_for(Resolver([answers])).fetch(url))
    assert sink.connections == []


def test_33_a_redirect_is_not_followed(host: ThreadingHTTPServer, sink: Sink) -> None:
    Host.elsewhere = f"http://127.0.0.1:{sink.port}/"
    with pytest.raises(FetchError, match="302"):
        url = f"http://images.example:{host.server_port}/redirect"
        asyncio.run(fetcher_for(Resolver([["127.0.0.2"]])).fetch(url))
    assert sink.connections == []


# 34. Local files.


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, encoded: Callable[..., bytes]) -> Path:
    """`allowed/` with a picture, and around it what must not be read."""
    root = tmp_path_factory.mktemp("files").resolve()
    for name in ("allowed/in", "allowed-not", "secret"):
        (root / name).mkdir(parents=True)
        (root / name / "a.png").write_bytes(encoded(7))
    (root / "allowed" / "link.png").symlink_to(root / "secret" / "a.png")
    (root / "allowed" / "links").symlink_to(root / "secret")
    (root / "allowed" / "inner.png").symlink_to("in/a.png")
    os.mkfifo(root / "allowed" / "pipe")
    return root


@pytest.fixture(scope="module")
def reading(serve: Any, folders: Path) -> Any:
    return serve(allow_image_folder=folders / "allowed")


def test_34_a_file_of_the_folder_is_read(reading: Any, folders: Path, image_part: Any) -> None:
    for url in (
        f"file://{folders}/allowed/in/a.png",
        f"file://localhost{folders}/allowed/in/./a.png",
    ):
        assert reading.ask(image_part(url=url)).status_code == 200


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "file://{root}/secret/a.png",
        "file://{root}/allowed/../secret/a.png",
        "file://{root}/allowed/in/%2e%2e/%2e%2e/secret/a.png",
        "file://{root}/allowed/..%2fsecret/a.png",
        "file://{root}/allowed-not/a.png",
        "file://{root}/allowed/link.png",
        "file://{root}/allowed/links/a.png",
        "file://{root}/allowed/inner.png",
        "file://{root}/allowed/pipe",
        "file://{root}/allowed/in",
        "file://{root}/allowed",
        "file://{root}/allowed/missing.png",
        "file://{root}/allowed/in/a.png%00.png",
        "file://example.com{root}/allowed/in/a.png",
        "file:{root}/secret/a.png",
        "FILE:///etc/passwd",
        "/etc/passwd",
        "{root}/allowed/in/a.png",
        "../secret/a.png",
    ],
)
def test_34_no_other_file_is_read(
    reading: Any, served: Any, folders: Path, image_part: Any, url: str
) -> None:
    part = image_part(url=url.format(root=folders))
    for server in (reading, served):
        message = error_of(server.ask(part))["message"]
        assert str(folders) not in message and "passwd" not in message
    within = image_part(url=f"file://{folders}/allowed/in/a.png")
    assert error_of(served.ask(within))["code"] == "image_url_not_allowed"


# 35. Picture hosts without end.


@pytest.mark.parametrize("path", ["endless", "dripping", "silent", "missing", "page"])
def test_35_an_endless_picture_costs_bounded_time_and_bytes(
    serve: Any, host: ThreadingHTTPServer, image_part: Any, path: str
) -> None:
    config = ServerConfig(allow_image_hosts=("*",))
    fetcher = fetcher_for(Resolver([["127.0.0.2"]]), max_bytes=1_000_000, timeout_s=0.5)
    served = serve(source=ImageSource(config, fetcher))
    start = time.monotonic()
    url = f"http://images.example:{host.server_port}/{path}"
    message = error_of(served.ask(image_part(url=url)))["message"]
    assert time.monotonic() - start < 2
    assert "127.0.0.2" not in message
    served.wait_until_free()
    assert served.ask("How many?").status_code == 200


# 36. Too much of everything.


def test_36_a_prompt_over_the_context_is_refused_with_counts(served: Any) -> None:
    asked = served.engine.num_requests
    error = error_of(served.ask("circle " * 300))
    assert error["code"] == "context_length_exceeded" and error["param"] == "messages"
    assert "256" in error["message"] and any(
        int(w) > 256 for w in error["message"].split() if w.isdecimal()
    )
    error = error_of(served.ask("How many?", max_tokens=250))
    assert error["param"] == "max_tokens" and "250" in error["message"]
    assert served.engine.num_requests == asked
    served.wait_until_free()


def test_36_too_many_images_are_refused_with_counts(served: Any, image_part: Any) -> None:
    error = error_of(served.ask(*[image_part(1)] * 17))
    assert error["code"] == "too_many_images"
    assert "17" in error["message"] and "16" in error["message"]


def test_36_too_long_a_text_is_refused_before_it_is_encoded(serve: Any) -> None:
    served = serve(max_text_chars=100)
    error = error_of(served.ask("a" * 101))
    assert "101" in error["message"] and "100" in error["message"]


# 37. Clients that go.


@pytest.mark.parametrize("stream", [False, True])
def test_37_generation_stops_when_its_client_is_gone(
    serve: Any, make_stub: Any, stream: bool
) -> None:
    served = serve(make_stub(answer=[40], step_s=0.05))
    body = json.dumps({**ASKED, "stream": stream, "max_tokens": 200}).encode()
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        end = time.monotonic() + 5
        while served.engine.num_steps < 3:
            assert time.monotonic() < end
            time.sleep(0.005)
    steps = served.engine.num_steps
    served.wait_until_free()
    # One step may be under way, and one token more is what tells a stream's server.
    assert served.engine.num_steps - steps <= 3
    assert len(served.engine.cancelled) == 1


def test_37_a_request_that_is_still_read_can_go_too(serve: Any, image_part: Any) -> None:
    served = serve()
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        client.sendall(b"POST /v1/ask HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\nabc")
    served.wait_until_free()
    assert is_healthy(served) and not served.engine.requests


# 38. A full queue.


def test_38_a_full_queue_is_429_and_what_was_accepted_is_answered(
    serve: Any, make_stub: Any
) -> None:
    served = serve(make_stub(slots=2, step_s=0.02), slots=2, queue=2, max_choices=4)
    answers: list[httpx2.Response] = []

    def ask() -> None:
        answers.append(served.ask("How many?", max_tokens=20))

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(answers) - len(refused) >= 4 and len(refused) >= 1
    for answer in refused:
        assert error_of(answer, 429)["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1
    served.wait_until_free()
    assert served.ask("How many?", n=4).status_code == 200
    assert error_of(served.ask("How many?", n=5))["param"] == "n"


# 39. A request that fails.


def test_39_one_failure_is_one_500(serve: Any, make_stub: Any, caplog: Any) -> None:
    served = serve(make_stub(step_s=0.02, fails=lambda request: request.max_new_tokens == 7))
    answers: dict[int, httpx2.Response] = {}

    def ask(max_tokens: int) -> None:
        answers[max_tokens] = served.ask("How many?", max_tokens=max_tokens)

    threads = [threading.Thread(target=ask, args=(tokens,)) for tokens in (5, 6, 7, 8, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert error_of(answers.pop(7), 500)["type"] == "server_error"
    assert {answer.status_code for answer in answers.values()} == {200}
    served.wait_until_free()
    assert is_healthy(served)


def test_39_a_step_that_fails_as_a_whole_ends_its_requests_only(serve: Any, make_stub: Any) -> None:
    engine = make_stub()
    step = engine.step

    def fail_once() -> Any:
        engine.step = step
        raise MemoryError("no memory")

    engine.step = fail_once
    served = serve(engine)
    error = error_of(served.ask("How many?"), 500)
    assert "memory" not in error["message"]
    assert served.ask("How many?").status_code == 200
    served.wait_until_free()


# 40. SIGTERM: see also tests/vlm/server/test_drain.py.


# 41. Keys.


def test_41_every_route_but_health_wants_a_key(serve: Any) -> None:
    served = serve(api_keys=["right"])
    paths = served.client.get("/openapi.json", headers={"authorization": "Bearer right"}).json()
    asked = [(method, path) for path, methods in paths["paths"].items() for method in methods]
    assert len(asked) == 8
    asked += [("get", "/docs"), ("get", "/openapi.json"), ("get", "/nowhere"), ("get", "//health")]
    for method, path in asked:
        path = path.replace("{model}", "tiny")
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": b"Bearer right\xe9"},
        ):
            response = served.client.request(method, path, headers=headers)
            if path == "/health":
                assert response.status_code == 200
            else:
                assert error_of(response, 401)["code"] == "invalid_api_key"
    assert not served.engine.requests


# 42. Slow senders and idle sockets.


def is_closed(connection: socket.socket) -> bool:
    connection.settimeout(0.0)
    try:
        while connection.recv(4096):
            pass
        return True
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.fixture
def many_files() -> Iterator[None]:
    """Room for the open files of a thousand connections, both ends of which are here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 4000
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"this system allows {hard} open files, needed: {needed}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_42_idle_sockets_and_slow_senders_are_closed_and_users_served(serve: Any) -> None:
    served = serve(head_s=1.0, body_s=1.0)
    address = "127.0.0.1", served.port
    idle = [socket.create_connection(address) for _ in range(1000)]
    heads = [socket.create_connection(address) for _ in range(5)]
    bodies = [socket.create_connection(address) for _ in range(5)]
    for connection in bodies:
        connection.sendall(b"POST /v1/ask HTTP/1.1\r\nHost: a\r\nContent-Length: 50000\r\n\r\n")
    seconds = []
    end = time.monotonic() + 15
    slow = [*heads, *bodies]
    while not all(map(is_closed, [*idle, *slow])):
        assert time.monotonic() < end, "slow connections are still open"
        for connection in slow:
            try:
                connection.settimeout(1)
                connection.sendall(b"G" if connection in heads else b" ")
            except OSError:
                pass
        start = time.monotonic()
        assert served.ask("How many?").status_code == 200
        seconds.append(time.monotonic() - start)
        time.sleep(0.1)
    assert sorted(seconds)[len(seconds) // 2] < 0.5
    for connection in (*idle, *slow):
        connection.close()


def test_42_a_client_that_takes_nothing_is_let_go(serve: Any, make_stub: Any) -> None:
    engine = make_stub(answer=[40], step_s=0.0)
    served = serve(engine, write_s=0.5, head_s=1.0, max_context=4096)
    wanted = {"stream": True, "n": 8, "logprobs": True, "top_logprobs": 2, "max_tokens": 4000}
    body = json.dumps({**ASKED, **wanted}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(("127.0.0.1", served.port))
        client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        end = time.monotonic() + 5
        while not served.service.worker.num_open:
            assert time.monotonic() < end
            time.sleep(0.01)
        served.wait_until_free(20)
    asked = 'vlm_requests_total{route="/v1/chat/completions",status="200"} 1.0'
    text = served.client.get("/metrics").text
    assert asked in text
    completion = next(line for line in text.splitlines() if 'kind="completion"' in line)
    assert float(completion.split()[1]) < 8 * 4000  # the rest was not waited for


# 44. Pictures that a careless cache would take for one.


def test_44_pictures_of_the_same_bytes_have_keys_of_their_own(served: Any, image_part: Any) -> None:
    from io import BytesIO

    from PIL import Image

    pixels = bytes(range(256)) * 6
    images = [
        Image.frombytes("RGB", (16, 32), pixels),
        Image.frombytes("RGB", (32, 16), pixels),
        Image.frombytes("L", (32, 48), pixels),
        Image.frombytes("L", (48, 32), pixels),
        Image.frombytes("RGBA", (16, 24), pixels),
    ]
    keys = []
    for image in images:
        file = BytesIO()
        image.save(file, "PNG")
        uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        assert served.ask(image_part(url=uri)).status_code == 200
        keys.append(served.engine.requests[-1].image_keys)
    assert len(set(keys)) == len(images)
