"""Benchmarks from the hub, which the test serves on this machine."""

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
from picture_benchmarks import png, write_table

from eval.benchmark import find_benchmark
from eval.download import download
from vlm import cli
from vlm.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "lmms-lab/MME"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as a download uses: one public data set."""

    folder: Path
    asked: list[str]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        files = {
            file.relative_to(self.folder).as_posix(): file.read_bytes()
            for file in sorted(self.folder.rglob("*"))
            if file.is_file()
        }
        tree = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in files.items()
        ]
        described = f"/api/datasets/{REPOSITORY}"
        if path in (described, f"{described}/revision/v2", f"{described}/revision/{COMMIT}"):
            self.answer(json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": []}).encode())
        elif path == f"{described}/tree/{COMMIT}":
            self.answer(json.dumps(tree).encode())
        elif path.startswith(f"/datasets/{REPOSITORY}/resolve/{COMMIT}/"):
            data = files[path.removeprefix(f"/datasets/{REPOSITORY}/resolve/{COMMIT}/")]
            self.answer(data, {"X-Repo-Commit": COMMIT, "ETag": hashlib.sha1(data).hexdigest()})
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


def point_client_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    served = tmp_path / "hub"
    rows = [
        {"question_id": "OCR/1.jpg", "image": png(1), "question": "?", "category": "OCR",
         "answer": answer}
        for answer in ("Yes", "No")
    ]  # fmt: skip
    write_table(served / "data/test-00000-of-00001.parquet", rows)
    (served / "data/train-00000-of-00001.parquet").write_bytes(b"not asked for")
    (served / "data/test-loader.py").write_text("raise SystemExit")
    (served / "README.md").write_text("A data set.")
    handler = type("OneHub", (Hub,), {"folder": served, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        point_client_to(f"http://127.0.0.1:{server.server_address[1]}", monkeypatch)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield handler
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("revision", [None, "v2"])
def test_a_benchmark_is_downloaded_and_read(
    revision: str | None, hub: type[Hub], tmp_path: Path
) -> None:
    out = tmp_path / "mme"
    assert download(find_benchmark("mme"), out, revision) == COMMIT
    items = list(find_benchmark("mme").items(out))
    assert [item.answers for item in items] == [("Yes",), ("No",)]
    assert items[0].images[0].read() == png(1)


def test_only_what_the_benchmark_names_is_downloaded(
    hub: type[Hub], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mme"
    assert cli.main(["eval", "get", "mme", str(out)]) == 0
    assert f"lmms-lab/MME at commit {COMMIT} is in {out}" in capsys.readouterr().out
    found = {p.relative_to(out) for p in out.rglob("*") if p.is_file() and ".cache" not in p.parts}
    assert found == {Path("data/test-00000-of-00001.parquet")}
    assert not [path for path in hub.asked if "train-" in path or ".py" in path]


def test_the_files_of_examples_are_downloaded_too(hub: type[Hub], tmp_path: Path) -> None:
    shown = "few_shot={num_examples: 1, files: {examples: data/train-*.parquet}}"
    download(find_benchmark("mme", (shown,)), tmp_path)
    assert [path for path in hub.asked if "train-" in path]


def test_a_program_is_never_downloaded(hub: type[Hub], tmp_path: Path) -> None:
    download(find_benchmark("mme", ("files.questions=data/test-*",)), tmp_path / "mme")
    assert (tmp_path / "mme/data/test-00000-of-00001.parquet").is_file()
    assert not [path for path in hub.asked if path.endswith(".py")]


def test_what_cannot_be_downloaded_is_explained(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"shapes is not on the hub\. Take exp_shapes"):
        download(find_benchmark("shapes"), tmp_path / "out")
    with pytest.raises(UserError, match=r"lmms-lab/DocVQA: .* no such data set on the hub"):
        download(find_benchmark("doc_vqa"), tmp_path / "out")
    other = find_benchmark("mme", ("files.questions=data/dev-*.parquet",))
    with pytest.raises(UserError, match=r"has no data/dev-\*\.parquet|is no folder"):
        download(other, tmp_path / "out")
    point_client_to("http://127.0.0.1:9", monkeypatch)  # nobody listens there
    with pytest.raises(UserError, match="lmms-lab/MME: cannot be downloaded"):
        download(find_benchmark("mme"), tmp_path / "out")
