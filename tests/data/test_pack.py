import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from data.pack import Manifest, file_sha256, pack, read_rejects, reject_summary
from data.schema import RawSample, Reject, Sample
from data.shards import read_folder
from vlm.errors import UserError


def picture(value: int = 0, format_name: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 3), value).save(buffer, format_name)
    return buffer.getvalue()


def raw(key: str, *images: bytes, text: str = "what?", answer: str = "that") -> RawSample:
    question = [{"type": "image"}] * len(images) + [{"type": "text", "text": text}]
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    return RawSample(key, Sample.parse({"messages": messages}), list(images))


def test_samples_come_back_as_they_were_packed(tmp_path: Path) -> None:
    samples = [
        raw("a/1", picture(1, "JPEG"), picture(2, "GIF"), text="first <|image|> or <|eot_id|>?"),
        raw("text-only"),
        raw("ä".encode().hex(), picture(3), answer="ä\n\u2028"),
    ]
    manifest = pack(samples, tmp_path / "out", samples_per_shard=2)
    assert list(read_folder(tmp_path / "out")) == samples
    assert (manifest.num_samples, manifest.num_images, manifest.num_turns) == (3, 3, 3)
    assert Manifest.read(tmp_path / "out") == manifest
    assert [entry.num_samples for entry in manifest.shards] == [2, 1]
    for entry in manifest.shards:
        path = tmp_path / "out" / entry.name
        assert (path.stat().st_size, file_sha256(path)) == (entry.num_bytes, entry.sha256)


def test_members_are_named_by_key_place_and_content(tmp_path: Path) -> None:
    pack([raw("k", picture(1, "JPEG"), picture(2))], tmp_path / "out")
    with tarfile.open(tmp_path / "out/shard-000000.tar") as tar:
        assert tar.getnames() == ["k.json", "k.0.jpg", "k.1.png"]
        assert all(m.mtime == 0 and m.uid == 0 and m.uname == "" for m in tar.getmembers())


def test_equal_data_give_equal_bytes_and_fingerprints(tmp_path: Path) -> None:
    samples = [raw(str(i), picture(i)) for i in range(5)]
    one = pack(samples, tmp_path / "one", samples_per_shard=3)
    two = pack(iter(samples), tmp_path / "two", samples_per_shard=3)
    assert one == two and one.sha256 == two.sha256
    for name in ("shard-000000.tar", "shard-000001.tar", "manifest.json", "rejects.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    other = pack([*samples[:4], raw("4", picture(9))], tmp_path / "three", samples_per_shard=3)
    assert other.sha256 != one.sha256


def test_bad_inputs_are_listed_and_their_neighbours_survive(tmp_path: Path) -> None:
    samples: list[RawSample | Reject] = [
        raw("a", picture()),
        raw("a", picture(1)),
        raw("broken", picture()[:40]),
        Reject("captions.jsonl:3", "no caption: x.png has none"),
        raw("html", b"<html>"),
        RawSample("short", raw("x", picture()).sample, []),
        raw("dotted.key", picture()),
        raw("__hidden__/x", picture()),
        raw("b", picture(2)),
    ]
    manifest = pack(samples, tmp_path / "out")
    assert [kept.key for kept in read_folder(tmp_path / "out")] == ["a", "b"]
    rejects = read_rejects(tmp_path / "out")
    assert manifest.num_rejects == len(rejects) == 7
    assert [(reject.key, reject.kind) for reject in rejects] == [
        ("a", "duplicate key"),
        ("broken", "bad picture"),
        ("captions.jsonl:3", "no caption"),
        ("html", "bad picture"),
        ("short", "number of pictures"),
        ("dotted.key", "bad key"),
        ("__hidden__/x", "bad key"),
    ]


def test_a_key_whose_sample_was_rejected_is_still_free(tmp_path: Path) -> None:
    pack([raw("a", b"no picture"), raw("a", picture())], tmp_path / "out")
    assert [kept.key for kept in read_folder(tmp_path / "out")] == ["a"]


def test_summary_counts_by_kind_and_shows_the_first_few() -> None:
    rejects = [Reject(str(i), f"bad picture: {i}") for i in range(5)]
    lines = reject_summary([Reject("x", "no\x1b[31m caption"), *rejects], num_examples=2)
    assert lines[:4] == [
        "5 x bad picture",
        "    0: bad picture: 0",
        "    1: bad picture: 1",
        "    and 3 more",
    ]
    assert "\x1b" not in lines[-1]


def test_text_that_is_no_unicode_reaches_the_rejects_file(tmp_path: Path) -> None:
    pack([Reject("\ud800", "bad name: \ud800"), raw("a")], tmp_path / "out")
    assert read_rejects(tmp_path / "out") == [Reject("\ud800", "bad name: \ud800")]


def test_nothing_usable_is_an_error_that_counts_the_reasons(tmp_path: Path) -> None:
    bad = [raw("a", b""), Reject("b", "no caption"), Reject("c", "no caption")]
    with pytest.raises(UserError, match=r"2 x no caption; 1 x bad picture \(the first: a: bad"):
        pack(bad, tmp_path / "out")
    with pytest.raises(UserError, match="the source is empty"):
        pack([], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupted() -> Iterator[RawSample]:
        yield raw("a", picture())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(interrupted(), tmp_path / "out", samples_per_shard=1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="is not empty"):
        pack([raw("a")], tmp_path)
    (tmp_path / "empty").mkdir()
    assert pack([raw("a")], tmp_path / "empty").num_samples == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="file/out cannot be written: Not a directory"):
        pack([raw("a")], tmp_path / "file/out")


def test_a_missing_or_foreign_manifest_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no manifest\.json: give a folder that"):
        Manifest.read(tmp_path)
    pack([raw("a")], tmp_path / "train")
    with pytest.raises(UserError, match=r"holds no manifest\.json: name one of .*train"):
        Manifest.read(tmp_path)
    path = tmp_path / "train/manifest.json"
    content = json.loads(path.read_text())
    content["shards"][0]["name"] = "pipe:touch pwned.tar"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"is not a manifest: shards\.0\.name"):
        Manifest.read(tmp_path / "train")
