"""Bytes arrive as they lie, wherever that is, or an error says within bounded time why not."""

import asyncio
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest

import data.storage
from data.storage import (
    ByteRange,
    MissingFile,
    Patience,
    StorageError,
    file_tag,
    join,
    list_files,
    open_file,
    read_file,
    read_ranges,
)

CONTENT = random.Random(0).randbytes(100_000)
QUICK = Patience(timeout_s=0.5, num_tries=4, first_wait_s=0.01)

Folder = Callable[[dict[str, bytes]], str]


@pytest.fixture(params=["path", "file", "memory", "http"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, web: Any) -> Iterator[Folder]:
    """Puts files somewhere and returns the location of their folder."""

    def put(files: dict[str, bytes]) -> str:
        if request.param == "memory":
            for name, content in files.items():
                fsspec.filesystem("memory").pipe(f"/folder/{name}", content)
            return "memory://folder"
        for name, content in files.items():
            (web.folder / name).write_bytes(content)
        places = {"path": str(web.folder), "file": f"file://{web.folder}", "http": web.url}
        return places[request.param]

    yield put
    fsspec.filesystem("memory").store.clear()


def test_every_storage_gives_the_bytes_that_were_asked_for(folder: Folder) -> None:
    root = folder({"a.tar": CONTENT, "b.tar": CONTENT[::-1]})
    rng = random.Random(1)
    wanted, expected = [], []
    for _ in range(60):
        name, content = rng.choice([("a.tar", CONTENT), ("b.tar", CONTENT[::-1])])
        start = rng.randrange(len(content))
        end = rng.randrange(start, len(content) + 5000)
        wanted.append(ByteRange(join(root, name), start, end))
        expected.append(content[start:end])
    wanted += [ByteRange(join(root, "none.tar"), 0, 5), ByteRange(join(root, "a.tar"), 5, None)]
    assert read_ranges(wanted) == [*expected, None, CONTENT[5:]]
    assert read_file(join(root, "a.tar")) == CONTENT
    with pytest.raises(MissingFile, match=r"none\.tar is missing"):
        read_file(join(root, "none.tar"))
    assert read_ranges([]) == []


def test_nothing_lies_behind_the_end(folder: Folder) -> None:
    root = folder({"a": b"abc", "empty": b""})
    ranges = [
        ByteRange(join(root, name), start, 10) for name, start in [("a", 3), ("a", 5), ("empty", 0)]
    ]
    assert read_ranges(ranges, QUICK) == [b"", b"", b""]


def test_an_open_file_reads_and_seeks(folder: Folder) -> None:
    root = folder({"a": CONTENT})
    with open_file(join(root, "a")) as file:
        assert file.read(10) == CONTENT[:10]
        file.seek(50_000)
        assert file.read(20) == CONTENT[50_000:50_020]
        file.seek(-10, os.SEEK_CUR)
        assert file.read(10) == CONTENT[50_010:50_020]
        file.seek(99_990)
        assert file.read(20) == CONTENT[99_990:]
    with pytest.raises(MissingFile, match="none is missing"), open_file(join(root, "none")) as file:
        file.read(1)


def test_tags_tell_contents_of_other_sizes_apart(folder: Folder) -> None:
    root = folder({"a": b"abc"})
    tag = file_tag(join(root, "a"))
    assert tag == file_tag(join(root, "a"))
    folder({"a": b"abcd"})
    assert file_tag(join(root, "a")) != tag
    with pytest.raises(MissingFile):
        file_tag(join(root, "none"))


def test_files_of_a_kind_are_listed(folder: Folder) -> None:
    root = folder({"b.tar": b"1", "a.tar": b"12", "a.json": b""})
    if root.startswith("http"):  # a server's page of links is no list of files
        assert list_files(root, ".tar") == []
        return
    assert list_files(root, ".tar") == ["a.tar", "b.tar"]
    with pytest.raises(MissingFile):
        list_files(join(root, "none"), ".tar")


def test_a_file_that_may_not_be_read_is_no_missing_one(tmp_path: Path) -> None:
    (tmp_path / "folder.tar").mkdir()
    with pytest.raises(StorageError, match=r"folder\.tar cannot be read: IsADirectoryError"):
        read_file(str(tmp_path / "folder.tar"))
    with pytest.raises(MissingFile):
        read_file(str(tmp_path / "folder.tar/x/y"))


@pytest.mark.parametrize(
    "location",
    [
        "pipe:touch sprung",
        "pipe://touch sprung",
        "simplecache::http://127.0.0.1/a",
        "zip://a::/tmp/b.zip",
        "ftp://127.0.0.1/a",
        "ssh://127.0.0.1/a",
        "file:a",
        "http:/127.0.0.1/a",
    ],
)
def test_other_protocols_are_refused(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for read in (read_file, open_file, file_tag):
        with pytest.raises(StorageError, match="neither a path nor a URL that is read"):
            read(location)
    assert not list(tmp_path.iterdir())


def test_a_path_may_hold_a_colon_behind_a_slash(tmp_path: Path) -> None:
    (tmp_path / "a:b").write_bytes(b"1")
    assert read_file(str(tmp_path / "a:b")) == b"1"


@pytest.mark.parametrize("faults", [[503], [500, 429, 408], ["drop", 503], ["stall", "drop"]])
def test_what_may_pass_is_tried_again(web: Any, faults: list[Any]) -> None:
    (web.folder / "a").write_bytes(CONTENT)
    web.faults["a"] = list(faults)
    assert read_ranges([ByteRange(f"{web.url}/a", 10, 50_000)], QUICK) == [CONTENT[10:50_000]]
    assert web.asked == [("a", "bytes=10-49999")] * (len(faults) + 1)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (503, "status 503"),
        ("stall", r"no whole answer within 0\.1 s"),
        ("drop", "ClientPayloadError|ServerDisconnected"),
    ],
)
def test_patience_ends(web: Any, fault: Any, reason: str) -> None:
    (web.folder / "a").write_bytes(CONTENT)
    (web.folder / "b").write_bytes(CONTENT)
    web.faults["a"] = [fault] * 100
    wanted = [ByteRange(f"{web.url}/{name}", 0, 1000) for name in "bbabb"]
    start = time.perf_counter()
    with pytest.raises(StorageError, match=rf"/a could not be read in 3 tries, .*({reason})"):
        read_ranges(wanted, Patience(timeout_s=0.1, num_tries=3, first_wait_s=0.01))
    assert time.perf_counter() - start < 5
    assert sum(name == "a" for name, _ in web.asked) == 3


def test_a_file_that_cannot_be_looked_up_is_no_missing_one(web: Any) -> None:
    (web.folder / "a").write_bytes(CONTENT)
    web.faults["a"] = [503, 503]
    assert file_tag(f"{web.url}/a", QUICK) == "size=100000"
    web.faults["a"] = [503] * 9
    with pytest.raises(StorageError, match="status 503"):
        file_tag(f"{web.url}/a", QUICK)


@pytest.mark.parametrize("status", [401, 403, 400])
def test_what_will_not_pass_is_asked_for_once(web: Any, status: int) -> None:
    (web.folder / "a").write_bytes(CONTENT)
    web.faults["a"] = [status] * 100
    with pytest.raises(StorageError, match=rf"/a cannot be read: status {status}"):
        read_file(f"{web.url}/a", QUICK)
    assert len(web.asked) == 1


def test_a_server_that_is_not_there_is_named(web: Any) -> None:
    web.server.shutdown()
    web.server.server_close()
    with pytest.raises(StorageError, match=rf"{web.url}/a could not be read in 4 tries"):
        read_file(f"{web.url}/a", QUICK)


def test_a_server_that_ignores_ranges_is_refused_before_it_sends_all(web: Any) -> None:
    (web.folder / "a").write_bytes(bytes(200_000_000))
    web.faults["a"] = ["whole"] * 3
    with pytest.raises(StorageError, match=r"/a cannot be read in parts: its server ignores range"):
        read_ranges([ByteRange(f"{web.url}/a", 0, 1000)], QUICK)
    assert len(web.asked) == 1 and web.num_sent < 200_000_000
    (web.folder / "a").write_bytes(b"abc")
    assert read_ranges([ByteRange(f"{web.url}/a", 0, 1000)], QUICK) == [b"abc"]


def test_remote_ranges_are_read_at_the_same_time(web: Any) -> None:
    (web.folder / "a").write_bytes(CONTENT)
    web.faults["a"] = ["stall"] * 8  # one after the other these would take 4 s
    wanted = [ByteRange(f"{web.url}/a", start, start + 1000) for start in range(0, 8000, 1000)]
    start = time.perf_counter()
    assert read_ranges(wanted, QUICK) == [CONTENT[w.start : w.end] for w in wanted]
    assert time.perf_counter() - start < 2


def test_threads_and_a_running_event_loop_may_read(web: Any) -> None:
    (web.folder / "a").write_bytes(CONTENT)

    def right(start: int) -> bool:
        wanted = ByteRange(f"{web.url}/a", start, start + 100)
        return read_ranges([wanted], QUICK) == [CONTENT[start : start + 100]]

    async def in_a_loop() -> bool:
        return right(7)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(right, range(100)))
    assert asyncio.run(in_a_loop())


def test_a_fork_reads_over_connections_of_its_own(web: Any) -> None:
    (web.folder / "a").write_bytes(CONTENT)

    def right(start: int) -> bool:
        wanted = ByteRange(f"{web.url}/a", start, start + 5000)
        return read_ranges([wanted], QUICK) == [CONTENT[start : start + 5000]]

    assert right(0)
    children = []
    for number in range(3):
        process = os.fork()
        if process == 0:
            try:
                os._exit(0 if all(right(start) for start in range(number, 3000, 100)) else 1)
            except BaseException:
                traceback.print_exc()
                os._exit(2)
        children.append(process)
    assert all(right(start) for start in range(0, 3000, 100))  # at the same time
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert right(1)


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_an_object_store_without_its_package_says_what_to_install(
    protocol: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    registry = sys.modules["fsspec.registry"]  # `fsspec.registry` is a view of what it holds
    monkeypatch.delitem(registry._registry, protocol, raising=False)
    monkeypatch.setattr(data.storage, "_filesystems", {})
    with pytest.raises(StorageError, match=r"needs a package .*: pip install 'vlm\[cloud\]'"):
        read_file(f"{protocol}://bucket/a")
