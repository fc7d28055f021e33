import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image

from data.documents import Entry
from data.pack import Manifest, PackSettings, Part, file_sha256, pack, pack_parts
from data.pictures import PictureFolder, Pictures
from data.rejects import read_rejects, reject_summary
from data.schema import RawSample, Reject, Sample, sample_key
from data.shards import read_folder
from data.staging import require_new
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


def entries(folder: Path, count: int, seconds: int = 1) -> Part:
    """Pictures on disk, `seconds` samples each, every seventh damaged; as a source lists them."""
    folder.mkdir(exist_ok=True)
    listed = []
    for index in range(count):
        content = picture(index, "JPEG")
        (folder / f"{index}.jpg").write_bytes(content[:50] if index % 7 == 3 else content)
        for second in range(seconds):
            sample = raw("x", b"", text=f"{index} {second}?").sample
            listed.append(
                Entry(
                    f"{index}-{second}", (f"{index}.jpg",), partial(Sample.parse, sample.to_json())
                )
            )
    return Part(listed, Pictures([PictureFolder(folder)]), fingerprint=f"{count} {seconds}")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_no_byte_depends_on_the_number_of_workers(tmp_path: Path) -> None:
    parts = {"": entries(tmp_path / "pictures", 40, seconds=2)}
    for num_workers in (0, 1, 2):
        settings = PackSettings(7, max_side_px=3, dedup="picture", num_workers=num_workers)
        pack_parts(parts, tmp_path / f"{num_workers}", settings)
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "2")
    assert Manifest.read(tmp_path / "2").num_samples == 2 * (40 - 6)


class Killed(BaseException):
    """Ends a pack as a kill would, but for the tidying, which the test undoes."""


@pytest.mark.parametrize("num_read", [3, 4, 9, 12, 25, 26, 27])
@pytest.mark.parametrize("dedup", [None, "sample", "picture"])
def test_a_continued_pack_equals_one_that_was_never_stopped(
    tmp_path: Path, num_read: int, dedup: Literal["sample", "picture"] | None
) -> None:
    part = entries(tmp_path / "pictures", 13, seconds=2)
    twins = [replace(entry, key=f"again-{entry.key}") for entry in part.items]
    part = replace(part, items=[Reject("row", "no caption"), *part.items, *twins[:3]])
    settings = PackSettings(4, dedup=dedup)
    pack_parts({"a": part, "b": part}, tmp_path / "whole", settings)

    def stopped() -> Iterator[Any]:
        yield from itertools.islice(part.items, num_read)
        raise Killed

    broken = replace(part, items=stopped())
    with pytest.raises(Killed):
        pack_parts({"a": part, "b": broken}, tmp_path / "out", settings)
    with pytest.raises(UserError, match="was begun and not finished: continue with --resume"):
        require_new(tmp_path / "out")
    pack_parts({"a": part, "b": part}, tmp_path / "out", settings, resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole", "pictures"}


def test_a_shard_that_was_damaged_since_is_written_again(tmp_path: Path) -> None:
    part = entries(tmp_path / "pictures", 12)
    pack_parts({"": part}, tmp_path / "whole", PackSettings(3))

    def stopped() -> Iterator[Any]:
        yield from itertools.islice(part.items, 11)
        raise Killed

    with pytest.raises(Killed):
        pack_parts({"": replace(part, items=stopped())}, tmp_path / "out", PackSettings(3))
    shard = tmp_path / ".out.unfinished/shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    pack_parts({"": part}, tmp_path / "out", PackSettings(3), resume=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_another_plan_or_another_process_is_refused(tmp_path: Path) -> None:
    part = entries(tmp_path / "pictures", 6)

    def stopped() -> Iterator[Any]:
        yield from itertools.islice(part.items, 3)
        with pytest.raises(UserError, match="another process is packing"):
            pack_parts({"": part}, tmp_path / "out", PackSettings(2))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"1 whole shards of .*out are kept: --resume"):
        pack_parts({"": replace(part, items=stopped())}, tmp_path / "out", PackSettings(2))
    for other, settings in [
        (part, PackSettings(3)),
        (part, PackSettings(2, max_side_px=2)),
        (replace(part, fingerprint="other"), PackSettings(2)),
    ]:
        with pytest.raises(UserError, match="begun with other data or options"):
            pack_parts({"": other}, tmp_path / "out", settings, resume=True)
    pack_parts({"": part}, tmp_path / "out", PackSettings(2, num_workers=1), resume=True)
    assert Manifest.read(tmp_path / "out").num_samples == 5


def test_only_large_pictures_are_shrunk_and_keep_their_kind(tmp_path: Path) -> None:
    def large(format_name: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (40, 20), (9, 99, 200)).save(buffer, format_name, **options)
        return buffer.getvalue()

    turned = Image.Exif()
    turned[0x0112] = 6
    images = [picture(1), large("JPEG"), large("PNG"), large("WEBP"), large("JPEG", exif=turned)]
    part = Part([raw("k", *images)])
    pack_parts({"": part}, tmp_path / "out", PackSettings(max_side_px=10))
    (kept,) = read_folder(tmp_path / "out")
    assert kept.images[0] == images[0]
    opened = [Image.open(io.BytesIO(content)) for content in kept.images[1:]]
    assert [image.format for image in opened] == ["JPEG", "PNG", "JPEG", "JPEG"]
    assert [image.size for image in opened] == [(10, 5), (10, 5), (10, 5), (5, 10)]
    assert opened[1].getpixel((5, 2)) == (9, 99, 200)
    pack_parts({"": part}, tmp_path / "same", PackSettings(max_side_px=40))
    assert next(read_folder(tmp_path / "same")).images == images


def test_repeats_are_left_out_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, value in [("a.png", 1), ("copy.png", 1), ("b.png", 2)]:
        (folder / name).write_bytes(picture(value))
    listed = [
        Entry(key, (name,), partial(Sample.parse, raw("x", b"", text=text).sample.to_json()))
        for key, name, text in [
            ("one", "a.png", "what?"),
            ("same name", "a.png", "where?"),
            ("repeat", "a.png", "what?"),
            ("copy", "copy.png", "who?"),
            ("copied repeat", "copy.png", "what?"),
            ("other", "b.png", "what?"),
        ]
    ]
    listed = [replace(entry, key=sample_key(entry.key)) for entry in listed]
    part = Part(listed, Pictures([PictureFolder(folder)]))
    for dedup, expected in [
        ("sample", ["repeat: duplicate sample", "copied%20repeat: duplicate sample"]),
        (
            "picture",
            [
                "repeat: duplicate sample",
                "copy: duplicate picture",
                "copied%20repeat: duplicate sample",
            ],
        ),
    ]:
        settings = PackSettings(dedup=dedup)
        manifest = pack_parts({"": part}, tmp_path / dedup, settings)[tmp_path / dedup]
        rejects = read_rejects(tmp_path / dedup)
        assert [f"{reject.key}: {reject.kind}" for reject in rejects] == expected
        assert manifest.num_samples + len(rejects) == len(listed)
    assert rejects[1].reason == "duplicate picture: copy.png has the bytes of a.png"


def test_a_worker_that_dies_is_explained(tmp_path: Path) -> None:
    part = entries(tmp_path / "pictures", 3)
    deadly = Entry("deadly", (), partial(os._exit, 1))
    with pytest.raises(UserError, match="a worker process of the pack died"):
        pack_parts(
            {"": replace(part, items=[*part.items, deadly])},
            tmp_path / "out",
            PackSettings(num_workers=1),
        )
