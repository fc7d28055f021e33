"""An index says where the samples of a shard lie, or why it cannot."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from data.check import check_folder
from data.index import ShardIndex, index_name
from data.members import TarFault, read_members
from data.pack import Manifest, pack
from data.scan import cached_index, scan_shard
from data.schema import RawSample, Sample
from vlm.errors import UserError


def chats(number: int) -> list[RawSample]:
    content = [{"type": "text", "text": "that"}]
    messages = [{"role": role, "content": content} for role in ("user", "assistant")]
    return [RawSample(f"k{i}", Sample.parse({"messages": messages}), []) for i in range(number)]


def test_pack_writes_the_index_that_the_headers_give(tmp_path: Path) -> None:
    samples = [*chats(5), RawSample("name" * 50, chats(1)[0].sample, [])]
    manifest = pack(samples, tmp_path / "data", samples_per_shard=4)
    for entry in manifest.shards:
        beside = (tmp_path / "data" / index_name(entry.name)).read_bytes()
        index = ShardIndex.parse(beside, entry.sha256)
        assert index == scan_shard(str(tmp_path / "data" / entry.name))
        assert index.to_json(entry.sha256).encode() == beside


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=20), st.text(min_size=1))
def test_an_index_comes_back_as_it_was_written(gaps: list[int], name: str) -> None:
    edges = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    keys = (*(f"{name}{i}\udc80" for i in range(len(edges) - 1)), "a")
    index = ShardIndex(keys, tuple(edges), tuple([*edges[1:], edges[-1] + 512]))
    content = index.to_json("sha").encode("ascii")
    assert ShardIndex.parse(content, "sha") == index
    with pytest.raises(UserError, match="belongs to another content"):
        ShardIndex.parse(content, "other")


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 2},
        {"keys": ["a"]},
        {"starts": [0, 100]},
        {"ends": [512, 100]},
        {"starts": [-1, 512]},
        {"starts": ["x", 512]},
        {"ends": [512, float("inf")]},
        {"keys": [], "starts": [], "ends": []},
        {"keys": None},
    ],
)
def test_what_is_no_index_is_refused(changed: dict[str, Any]) -> None:
    sound = {"version": 1, "shard": "s", "keys": ["a", "b"], "starts": [0, 512], "ends": [512, 900]}
    ShardIndex.parse(json.dumps(sound).encode(), "s")
    for content in (json.dumps(sound | changed), "[]", "<html>", "{}"):
        with pytest.raises(UserError, match="is not an index of a shard"):
            ShardIndex.parse(content.encode(), "s")


def test_repeated_keys_are_found() -> None:
    places = tuple(range(0, 2560, 512))
    index = ShardIndex(("a", "b", "a", "c", "b"), places, tuple(place + 512 for place in places))
    assert index.repeated == {2, 4}
    assert ShardIndex(("a", "b"), (0, 512), (512, 1024)).repeated == frozenset()


def test_headers_of_every_kind_are_passed(tmp_path: Path) -> None:
    """Folders, links, notes of webdataset, long names, pax headers; grouped as webdataset does."""
    path = tmp_path / "odd.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, content in [
            ("a", tarfile.DIRTYPE, b""),
            ("a/x.JSON", tarfile.REGTYPE, b"1"),
            ("a/x.seg.png", tarfile.REGTYPE, b"22" * 600),
            ("link.json", tarfile.SYMTYPE, b""),
            ("__index__/notes.json", tarfile.REGTYPE, b"3"),
            ("a/x.0.png", tarfile.REGTYPE, b"444"),
            ("ä" * 70 + ".json", tarfile.REGTYPE, b"5"),
            ("a/x.json", tarfile.REGTYPE, b"6"),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.mtime = kind, len(content), 1234.5
            tar.addfile(member, io.BytesIO(content))
    index = scan_shard(str(path))
    assert index.keys == ("a/x", "ä" * 70, "a/x") and index.fault is None
    with path.open("rb") as stream:
        theirs = list(group_by_keys(tar_file_expander([{"url": "", "stream": stream}])))
    assert tuple(sample["__key__"] for sample in theirs) == index.keys
    content = path.read_bytes()
    for sample, start, end in zip(theirs, index.starts, index.ends, strict=True):
        piece = content[start:end]
        members = read_members(io.BytesIO(piece), 0, len(piece), start)
        found = {m.suffix: piece[m.content : m.content + m.num_bytes] for m in members}
        assert found == {name: sample[name] for name in sample if not name.startswith("__")}


def test_a_cut_anywhere_is_told_from_the_end(tmp_path: Path) -> None:
    pack(chats(3), tmp_path / "data")
    whole = (tmp_path / "data/shard-000000.tar").read_bytes()
    sound = scan_shard(str(tmp_path / "data/shard-000000.tar"))
    end = sound.ends[-1]
    for length in [*range(1, end + 512, 97), end, end + 511]:
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        index = scan_shard(str(tmp_path / "cut.tar"))
        assert index.fault is not None and index.fault.startswith("is cut short"), length
        assert index.keys == sound.keys[: len(index.keys)]
    (tmp_path / "cut.tar").write_bytes(whole[: end + 512])
    assert scan_shard(str(tmp_path / "cut.tar")) == sound


def test_a_hole_of_zeros_is_not_the_end(tmp_path: Path) -> None:
    pack(chats(3), tmp_path / "data")
    path = tmp_path / "data/shard-000000.tar"
    content = bytearray(path.read_bytes())
    second = scan_shard(str(path)).starts[1]
    content[second : second + 512] = bytes(512)
    path.write_bytes(content)
    assert scan_shard(str(path)).fault == (
        f"is damaged at byte {second}: more follows what looks like its end"
    )


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"<!doctype html><title>404", "is cut short: it has no byte 25"),
        (b"<!doctype html>".ljust(2000), "is no tar: it begins with b'<!doctype html> '"),
        (bytes(10240), "holds no sample"),
        (b"\x1f\x8b" + bytes(range(256)) * 8, r"is no tar: it begins with b'\x1f\x8b\x00\x01"),
    ],
)
def test_what_is_no_tar_says_so(tmp_path: Path, content: bytes, fault: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    index = scan_shard(str(tmp_path / "a.tar"))
    assert index.keys == () and index.fault is not None and index.fault.startswith(fault)


def test_a_size_that_leads_back_ends_the_reading() -> None:
    """A negative size would have a reader go round for ever."""
    member = tarfile.TarInfo("k.json")
    member.size = -1024
    header = member.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(TarFault, match=r"is damaged at byte 512: |is no tar"):
        list(read_members(io.BytesIO(bytes(512) + header + bytes(2048)), 512, None, 0))


def test_a_broken_shards_index_is_not_kept(tmp_path: Path, tars: Any, cache_home: Path) -> None:
    path = tmp_path / "a.tar"
    tars.write(path, [("a.json", b"1"), ("b.json", b"2"), ("c.json", b"3")])
    sound = path.read_bytes()
    tars.break_header(path, 1)
    assert cached_index(str(path)).keys == ("a",) and not list(cache_home.iterdir())
    path.write_bytes(sound)
    assert cached_index(str(path)).keys == ("a", "b", "c")
    (kept,) = cache_home.glob("vlm/index/*")
    kept.write_text("{")
    assert cached_index(str(path)).keys == ("a", "b", "c") and kept.read_text() != "{"


def test_a_cache_that_cannot_be_written_is_told_and_not_needed(
    tmp_path: Path, tars: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tars.write(tmp_path / "a.tar", [("a.json", b"1")])
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot be written .* set XDG_CACHE_HOME"):
        assert cached_index(str(tmp_path / "a.tar")).keys == ("a",)


def test_check_compares_the_index_with_the_shard(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    pack(chats(3), folder)
    assert check_folder(folder).faults == []
    (entry,) = Manifest.read(folder).shards
    beside = folder / index_name(entry.name)
    sound = beside.read_text()
    beside.write_text(sound.replace('"k1"', '"k7"'))
    faults = check_folder(folder).faults
    assert faults[0] == f"{beside} differs from the headers of the shard: remove it"
    assert "k7: bad sample" in faults[1] and "holds 'k1.json'" in faults[1] and len(faults) == 2
    beside.write_text(sound.replace(entry.sha256, "0" * 64))
    with pytest.warns(UserWarning, match="belongs to another content"):
        (fault,) = check_folder(folder).faults
    assert fault == f"{beside} belongs to another content of the shard: remove it"
    beside.unlink()
    assert check_folder(folder).faults == []
