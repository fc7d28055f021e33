import io
import pickle
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from data.check import check_folder, shard_folders
from data.pack import Manifest, ShardEntry, file_sha256, pack
from data.schema import RawSample, Sample
from data.shards import read_folder, read_shard
from vlm.errors import UserError

TALK = {
    "messages": [
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "that"}]},
    ]
}


def picture(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (2, 2), value).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    samples = [RawSample(f"k{i}", Sample.parse(TALK), [picture(i)]) for i in range(6)]
    pack(samples, tmp_path / "data", samples_per_shard=3)
    return tmp_path / "data"


def one_shard(folder: Path, members: dict[str, bytes], num_samples: int = 1) -> ShardEntry:
    """Write a shard of any members, and the entry that would make it look sound."""
    folder.mkdir(exist_ok=True)
    path = folder / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return ShardEntry(
        name=path.name,
        num_samples=num_samples,
        num_bytes=path.stat().st_size,
        sha256=file_sha256(path),
    )


def break_header(path: Path, member: int) -> None:
    """Spoil the checksum of one member's header; the file keeps its length."""
    with tarfile.open(path) as tar:
        offset = tar.getmembers()[member].offset
    content = bytearray(path.read_bytes())
    content[offset + 148 : offset + 156] = b"xxxxxxxx"
    path.write_bytes(content)


def test_a_sound_folder_passes(folder: Path) -> None:
    assert check_folder(folder).faults == []
    assert [raw.key for raw in read_folder(folder)] == [f"k{i}" for i in range(6)]


def test_a_truncated_shard_is_named_and_the_other_one_reads(folder: Path) -> None:
    path = folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:1500])
    first, second = Manifest.read(folder).shards
    with pytest.raises(UserError, match=r"shard-000000\.tar is cut short at 1500 bytes.*10240"):
        read_shard(folder, first)
    assert len(read_shard(folder, second)) == 3
    assert len(check_folder(folder).faults) == 1


def test_a_truncated_tar_of_the_expected_length_tells_the_place(tmp_path: Path) -> None:
    entry = one_shard(tmp_path, {"k.json": Sample.parse(TALK).to_json().encode() + b" " * 3000})
    path = tmp_path / entry.name
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match=r"shard\.tar is damaged near byte 1500: unexpected end"):
        read_shard(tmp_path, entry.model_copy(update={"num_bytes": 1500}))


@pytest.mark.parametrize("member", [2, 4])
def test_a_corrupt_header_in_the_middle_is_never_silent(folder: Path, member: int) -> None:
    break_header(folder / "shard-000001.tar", member)
    first, second = Manifest.read(folder).shards
    # webdataset itself ends here without a word, after member/2 of the three samples.
    with pytest.raises(UserError, match=rf"shard-000001.tar holds {member // 2} .* says 3"):
        read_shard(folder, second)
    assert len(read_shard(folder, first)) == 3
    faults = check_folder(folder).faults
    assert len(faults) == 2 and "sha256" in faults[0] and "says 3" in faults[1]


def test_missing_empty_and_html_shards_are_named(folder: Path) -> None:
    first, second = Manifest.read(folder).shards
    page = b"<html>503</html>".ljust(first.num_bytes)
    (folder / first.name).write_bytes(page)
    with pytest.raises(UserError, match=r"shard-000000\.tar is damaged near byte"):
        read_shard(folder, first)
    (folder / first.name).write_bytes(b"")
    with pytest.raises(UserError, match=r"shard-000000\.tar is cut short at 0 bytes"):
        read_shard(folder, first)
    (folder / second.name).unlink()
    with pytest.raises(
        UserError, match=r"shard-000001\.tar is missing; the manifest lists it with 3"
    ):
        read_shard(folder, second)


class Trap:
    """Leaves a file behind if somebody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", ["pyd", "pickle", "0.pkl", "pth", "cls", "npy", ""])
def test_a_pickle_member_is_refused_and_never_run(tmp_path: Path, suffix: str) -> None:
    sprung = tmp_path / "sprung"
    talk = Sample.parse(TALK).to_json().encode()
    name = f"k.{suffix}" if suffix else "k"
    members = {"k.json": talk, "k.0.png": picture(0), name: pickle.dumps(Trap(sprung))}
    entry = one_shard(tmp_path / "data", members)
    with pytest.raises(UserError, match=r"holds 'k.*': only KEY\.json and KEY\.0\.jpg"):
        read_shard(tmp_path / "data", entry)
    assert not sprung.exists()


def test_a_pipe_url_is_refused_and_never_run(folder: Path) -> None:
    entry = Manifest.read(folder).shards[0]
    command = entry.model_copy(update={"name": f"pipe:touch {folder}/sprung"})
    with pytest.raises(UserError, match="is missing"):
        read_shard(folder, command)
    assert not (folder / "sprung").exists()


def test_pictures_must_match_the_places_in_the_chat(tmp_path: Path) -> None:
    talk = Sample.parse(TALK).to_json().encode()
    for members, complaint in [
        ({"k.json": talk}, r"has pictures \[\] for 1 places"),
        ({"k.json": talk, "k.1.png": b""}, r"has pictures \[1\] for 1 places"),
        ({"k.0.png": b""}, "without k.json"),
        ({"k.json": b"{}", "k.0.png": b""}, r"k\.json: messages: "),
        ({"k.json": b"\x80\x04", "k.0.png": b""}, r"k\.json: "),
    ]:
        entry = one_shard(tmp_path, members)
        with pytest.raises(UserError, match=complaint):
            read_shard(tmp_path, entry)


def test_check_finds_bad_pictures_duplicate_keys_and_stray_shards(folder: Path) -> None:
    talk = Sample.parse(TALK).to_json().encode()
    entry = one_shard(folder, {"k0.json": talk, "k0.0.png": picture(0)[:30]})
    faults = check_folder(folder).faults
    assert faults == [f"{folder / 'shard.tar'} is not in the manifest"]
    manifest = Manifest.read(folder)
    grown = manifest.model_copy(update={"shards": (*manifest.shards, entry)})
    (folder / "manifest.json").write_text(grown.model_dump_json())
    faults = check_folder(folder).faults
    assert "k0 is already in shard-000000.tar" in faults[0]
    assert "k0: picture 0: " in faults[1]


def test_check_compares_the_totals(folder: Path) -> None:
    manifest = Manifest.read(folder).model_copy(update={"num_images": 7})
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    assert (
        "6 samples, 6 pictures, 6 answers; the manifest says 6, 7, 6"
        in (check_folder(folder).faults[0])
    )


def test_folders_of_a_split_are_found(folder: Path) -> None:
    assert shard_folders(folder) == [folder]
    assert shard_folders(folder.parent) == [folder]
    with pytest.raises(UserError, match=r"no manifest\.json"):
        check_folder(shard_folders(folder / "nothing")[0])
