"""Tars of any members and a web server, for the tests of what reads shards."""

import io
import re
import tarfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from data.pack import Manifest, ShardEntry, file_sha256
from data.schema import Sample

TALK = {
    "messages": [
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "that"}]},
    ]
}


class Tars:
    """Writes shards and manifests that may be wrong."""

    talk = Sample.parse(TALK).to_json().encode()

    @staticmethod
    def picture(value: int = 0) -> bytes:
        """A PNG of 2 x 2 pixels."""
        buffer = io.BytesIO()
        Image.new("L", (2, 2), value).save(buffer, "PNG")
        return buffer.getvalue()

    @staticmethod
    def write(path: Path, members: Sequence[tuple[str, bytes]]) -> ShardEntry:
        """Write a shard of any members, and return the entry that would make it look sound."""
        path.parent.mkdir(exist_ok=True, parents=True)
        with tarfile.open(path, "w") as tar:
            for name, content in members:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return ShardEntry(
            name=path.name,
            num_samples=len({name.partition(".")[0] for name, _ in members}),
            num_bytes=path.stat().st_size,
            sha256=file_sha256(path),
        )

    @staticmethod
    def manifest(folder: Path, *entries: ShardEntry) -> Path:
        """Write a manifest of these shards; returns the folder."""
        total = sum(entry.num_samples for entry in entries)
        manifest = Manifest(
            shards=entries, num_samples=total, num_images=total, num_turns=total, num_rejects=0
        )
        (folder / "manifest.json").write_text(manifest.model_dump_json())
        return folder

    @staticmethod
    def break_header(path: Path, number: int) -> int:
        """Spoil the checksum of one member's header; returns where it is. The length stays."""
        with tarfile.open(path) as tar:
            offset = tar.getmembers()[number].offset
        content = bytearray(path.read_bytes())
        content[offset + 148 : offset + 156] = b"0000000 "
        path.write_bytes(content)
        return offset


@pytest.fixture
def tars() -> type[Tars]:
    """How shards of any members are made."""
    return Tars


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, never the user's."""
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


class Web:
    """A web server on this machine, for a folder: it knows ranges and misbehaves when told to.

    faults: of each file, what happens to the next requests for it: a status, or "stall" (nothing
        comes), "drop" (the connection ends in the middle), "whole" (the range is ignored).
    listings: what is answered to a request with a query, by the folder's name.
    asked: (file, its Range header) of every request.
    error: the page of an error.
    num_sent: bytes of contents.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, list[int | str]] = defaultdict(list)
        self.listings: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.error = b"<html>no</html>"
        self.num_sent = 0
        self.closing = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web.answer(self)

            def do_HEAD(self) -> None:
                web.answer(self)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name, _, query = request.path.lstrip("/").partition("?")
        span = request.headers.get("Range")
        self.asked.append((name, span))
        fault = self.faults[name].pop(0) if self.faults[name] else None
        file = self.folder / name
        if query and name in self.listings:
            self._send(request, 200, self.listings[name])
            return
        if fault == "stall":
            self.closing.wait(30)
            request.close_connection = True
            return
        if isinstance(fault, int) or not file.is_file():
            self._send(request, fault if isinstance(fault, int) else 404, self.error)
            return
        content = file.read_bytes()
        status = 200
        if span and fault != "whole":
            first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", span).groups())
            if first >= len(content):
                self._send(request, 416, b"")
                return
            content, status = content[first : last + 1], 206
        self._send(request, status, content, fault == "drop")

    def _send(
        self, request: BaseHTTPRequestHandler, status: int, content: bytes, drop: bool = False
    ) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        piece = content[: len(content) // 2] if drop else content
        try:
            if request.command == "GET":
                request.wfile.write(piece)
                self.num_sent += len(piece)
        except OSError:  # the client has gone
            drop = True
        request.close_connection |= drop


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """A web server for the folder `web` of the test's temporary folder."""
    (tmp_path / "web").mkdir()
    served = Web(tmp_path / "web")
    thread = threading.Thread(target=served.server.serve_forever, args=(0.05,))
    thread.start()
    yield served
    served.closing.set()
    served.server.shutdown()
    served.server.server_close()
    thread.join()
