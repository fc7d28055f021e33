"""Downloading through the hub's own client, from a hub that the test serves on this machine."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from vlm import cli
from vlm.errors import UserError
from vlm.weights.folder import read_provenance
from vlm.weights.hub import download, is_repository_id

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "org/tiny-mllama"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a download uses: one public model, one gated."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        files = {file.name: file.read_bytes() for file in sorted(self.folder.iterdir())}
        files |= {"pytorch_model.bin": b"pickle", "original/params.json": b"{}"}
        tree = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in files.items()
        ]
        model = f"/api/models/{REPOSITORY}"
        if path in (f"{model}/revision/main", f"{model}/revision/v2"):
            self.answer(json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": []}).encode())
        elif path == f"{model}/tree/{COMMIT}":
            self.answer(json.dumps(tree).encode())
        elif path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/"):
            data = files[path.removeprefix(f"/{REPOSITORY}/resolve/{COMMIT}/")]
            self.answer(data, {"X-Repo-Commit": COMMIT, "ETag": hashlib.sha1(data).hexdigest()})
        elif path.startswith("/api/models/org/gated"):
            self.answer(b"{}", {"X-Error-Code": "GatedRepo"}, status=403)
        elif path.startswith(model):
            self.answer(b"{}", {"X-Error-Code": "RevisionNotFound"}, status=404)
        else:
            self.answer(b"{}", {"X-Error-Code": "RepoNotFound"}, status=404)

    do_HEAD = do_GET

    def answer(self, data: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


def point_client_to(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(
    mllama_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[Hub]]:
    handler = type("OneHub", (Hub,), {"folder": mllama_source, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        point_client_to(
            f"http://127.0.0.1:{server.server_address[1]}", tmp_path / "cache", monkeypatch
        )
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield handler
        server.shutdown()
        thread.join()


def test_an_id_on_the_hub_is_downloaded_and_its_commit_pinned(
    hub: type[Hub], mllama_source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ours"
    assert cli.main(["convert", "from-hf", REPOSITORY, str(out), "--revision", "v2"]) == 0
    assert read_provenance(out)["source"] == {"repository": REPOSITORY, "commit": COMMIT}
    assert f"/api/models/{REPOSITORY}/revision/v2" in hub.asked


def test_only_weights_without_code_and_settings_are_downloaded(
    hub: type[Hub], mllama_source: Path
) -> None:
    folder, commit = download(REPOSITORY)
    assert commit == COMMIT
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in mllama_source.iterdir()}
    assert not [path for path in hub.asked if "pytorch_model" in path or "original" in path]


@pytest.mark.parametrize(
    ("repository", "revision", "complaint"),
    [
        ("org/none", None, "no such model on the hub, or it is private"),
        (REPOSITORY, "v9", "at revision 'v9': .*no such model"),
        ("org/gated", None, "asks for its licence to be accepted"),
    ],
)
def test_what_the_hub_refuses_is_explained(
    hub: type[Hub], repository: str, revision: str | None, complaint: str
) -> None:
    with pytest.raises(UserError, match=complaint):
        download(repository, revision)


def test_a_hub_that_cannot_be_reached_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_client_to("http://127.0.0.1:9", tmp_path, monkeypatch)  # nobody listens there
    with pytest.raises(UserError, match=r"org/model: .*the hub cannot be reached"):
        download("org/model")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("meta-llama/Llama-3.2-11B-Vision", True),
        ("model", False),
        ("./model", False),
        ("../model", False),
        ("a/b/c", False),
        ("runs/quick start", False),
    ],
)
def test_what_counts_as_an_id(name: str, expected: bool) -> None:
    assert is_repository_id(name) is expected
