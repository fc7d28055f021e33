"""Each fault of the data is provoked, and costs what it touches: a test or a few for each."""

import io
import json
import pickle
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.collate import ChatBatch, collate_chats
from data.config import DataConfig
from data.encode import ChatEncoder, ChatRows
from data.loader import Loader
from data.pack import Manifest, PackSettings, Part, pack, pack_parts
from data.rejects import read_rejects
from data.schema import RawSample, Reject, Sample
from data.shards import ShardSet, read_folder
from data.sources import open_source
from data.storage import Patience, StorageError
from vlm.chat.processor import Processor
from vlm.errors import UserError
from vlm.images import read_image


def chat(key: str, *images: bytes, words: str = "that") -> RawSample:
    messages = [
        {"role": "user", "content": [*[{"type": "image"}] * len(images), text("what?")]},
        {"role": "assistant", "content": [text(words)]},
    ]
    return RawSample(key, Sample.parse({"messages": messages}), list(images))


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def encoded(image: Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def packed(folder: Path, number: int = 6, samples_per_shard: int = 3) -> list[RawSample]:
    samples = [chat(f"k{i}", encoded(Image.new("L", (2, 2), i))) for i in range(number)]
    pack(samples, folder, samples_per_shard=samples_per_shard)
    return samples


def found(folder: Path | str, **options: Any) -> tuple[list[RawSample], list[Reject]]:
    """What can be had of a folder, and what cannot."""
    shards = ShardSet.open(folder, **options)
    items = shards.read(list(shards.places))
    rejects = [item for item in items if isinstance(item, Reject)]
    return [item for item in items if isinstance(item, RawSample)], rejects


def loader(
    folder: Path, processor: Processor, shards: ShardSet | None = None, **settings: Any
) -> Loader[ChatRows, ChatBatch]:
    defaults = {"train": [folder], "batch_samples": 2, "max_tokens": 500}
    config = DataConfig.model_validate({**defaults, **settings})
    encode = ChatEncoder(processor, config, "assistant")
    collate = partial(collate_chats, pad_id=processor.tokenizer.pad_id)
    return Loader([shards or ShardSet.open(folder)], config, encode, collate, seed=0)


def without_indexes(folder: Path) -> None:
    for path in folder.glob("*.index.json"):
        path.unlink()


@pytest.mark.parametrize("with_index", [True, False])
def test_row_18_a_truncated_tar_names_shard_and_byte_and_the_rest_is_read(
    tmp_path: Path, with_index: bool
) -> None:
    samples = packed(tmp_path)
    if not with_index:
        without_indexes(tmp_path)
    path = tmp_path / "shard-000000.tar"
    path.write_bytes(path.read_bytes()[:2500])  # the first sample ends at byte 2048
    read, rejects = found(tmp_path)
    assert read == [samples[0], *samples[3:]]
    assert [reject.key for reject in rejects] == (
        ["k1", "k2"] if with_index else ["shard-000000.tar#1", "shard-000000.tar#2"]
    )
    for reject in rejects:
        assert reject.shard == path.name and reject.kind == "bad shard"
        assert f"{path} is cut short: it has no byte 2500" in reject.reason
    with pytest.raises(UserError, match="is cut short: it has no byte 2500"):
        list(read_folder(tmp_path))


@pytest.mark.parametrize("member", [1, 2, 3, 4])
def test_row_19_a_corrupt_header_in_mid_tar_costs_its_sample_and_is_never_silent(
    tmp_path: Path, tars: Any, member: int
) -> None:
    samples = packed(tmp_path)
    path = tmp_path / "shard-000001.tar"
    offset = tars.break_header(path, member)
    lost = 3 + member // 2
    read, (reject,) = found(tmp_path)
    assert read == samples[:lost] + samples[lost + 1 :]
    assert reject == Reject(
        f"k{lost}", f"bad shard: {path} is damaged at byte {offset}: bad checksum", path.name
    )
    with pytest.raises(UserError, match=rf"{path.name} is damaged at byte {offset}"):
        list(read_folder(tmp_path))
    # Without the index nothing is known of what follows, but that it is missing.
    without_indexes(tmp_path)
    read, rejects = found(tmp_path)
    assert len(read) + len(rejects) == 6
    assert f"is damaged at byte {offset}" in rejects[-1].reason


def test_row_20_empty_html_and_missing_shards_are_named_and_the_loader_stops(
    tmp_path: Path, processor: Processor
) -> None:
    samples = packed(tmp_path, 8, samples_per_shard=2)
    empty, html, missing, whole = (tmp_path / f"shard-00000{i}.tar" for i in range(4))
    empty.write_bytes(b"")
    html.write_bytes(b"<!doctype html><title>503</title>".ljust(html.stat().st_size))
    missing.unlink()
    faults = {
        empty: "is empty",
        html: "is no tar: it begins with b'<!doctype html><'",
        missing: "is missing",
    }
    for with_index in (True, False):
        if not with_index:
            without_indexes(tmp_path)
        read, rejects = found(tmp_path)
        assert read == samples[6:]
        assert Counter(reject.shard for reject in rejects) == {path.name: 2 for path in faults}
        reasons = {reject.reason for reject in rejects}
        assert reasons >= {f"bad shard: {path} {fault}" for path, fault in faults.items()}
    with pytest.raises(UserError, match=r"is (empty|missing|no tar)"):
        list(loader(tmp_path, processor).one_epoch())
    assert whole.is_file()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_row_21_fewer_shards_than_workers_work(
    tmp_path: Path, processor: Processor, num_workers: int
) -> None:
    samples = packed(tmp_path, 5, samples_per_shard=5)  # one shard
    batches = loader(tmp_path, processor, num_workers=num_workers).one_epoch()
    keys = [key for batch in batches for key in batch.keys]
    assert sorted(keys) == [raw.key for raw in samples]


def test_row_22_a_bad_picture_is_rejected_with_key_and_reason(
    tmp_path: Path, processor: Processor
) -> None:
    samples = packed(tmp_path / "data")
    path = tmp_path / "data/shard-000000.tar"
    rotten = samples[1].images[0]
    path.write_bytes(path.read_bytes().replace(rotten, b"?" * len(rotten)))
    reading = loader(tmp_path / "data", processor, max_bad_fraction=0.5)
    keys = [key for batch in reading.one_epoch() for key in batch.keys]
    assert sorted(keys) == ["k0", "k2", "k3", "k4", "k5"]
    (reject,) = reading.rejects
    assert (reject.key, reject.shard) == ("k1", path.name)
    assert reject.reason.startswith("not a picture")
    with pytest.raises(UserError, match=r"2 of \d samples were rejected"):
        path.write_bytes(path.read_bytes().replace(samples[2].images[0], b"?" * len(rotten)))
        list(loader(tmp_path / "data", processor, max_bad_fraction=0.1).one_epoch())
    # When packed it never gets as far.
    pack([samples[0], chat("bad", rotten[:20])], tmp_path / "again")
    (reject,) = read_rejects(tmp_path / "again")
    assert reject.key == "bad" and reject.kind == "bad picture"


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def two(mode: str, left: Any, right: Any) -> Image.Image:
    """A picture of two pixels side by side."""
    image = Image.new(mode, (2, 1), left)
    image.putpixel((1, 0), right)
    return image


def odd_pictures() -> dict[str, tuple[bytes, list[list[tuple[int, int, int]]]]]:
    """Encoded pictures of every odd kind, and their pixels as docs/design.md means them."""
    turned = Image.Exif()
    turned[0x0112] = 6  # the stored left is the top
    inks = two("CMYK", (0, 255, 255, 0), (0, 0, 0, 51))
    palette = two("P", 0, 1)
    palette.putpalette([*RED, *GREEN])
    frames = [two("RGB", RED, BLUE), two("RGB", GREEN, GREEN)]
    deep = Image.fromarray(np.array([[128, 65535]], np.uint16))
    return {
        "exif": (encoded(two("RGB", RED, BLUE), exif=turned), [[RED], [BLUE]]),
        "cmyk": (encoded(inks, "TIFF"), [[RED, (204,) * 3]]),
        "alpha": (encoded(two("RGBA", (*RED, 255), (*BLUE, 0))), [[RED, WHITE]]),
        "half": (encoded(two("RGBA", (0, 0, 0, 51), (*BLUE, 255))), [[(204,) * 3, BLUE]]),
        "deep": (encoded(deep), [[(0,) * 3, WHITE]]),
        "palette": (encoded(palette), [[RED, GREEN]]),
        "clear": (encoded(palette, transparency=1), [[RED, WHITE]]),
        "gif": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), [[RED, BLUE]]),
        "bilevel": (encoded(two("1", 0, 1)), [[(0,) * 3, WHITE]]),
        "grey": (encoded(two("L", 7, 77)), [[(7,) * 3, (77,) * 3]]),
    }


@pytest.mark.parametrize("kind", odd_pictures())
def test_row_23_odd_pictures_keep_their_bytes_and_become_the_documented_pixels(
    tmp_path: Path, processor: Processor, kind: str
) -> None:
    content, pixels = odd_pictures()[kind]
    pack([chat("k", content)], tmp_path / "data")
    (raw,) = read_folder(tmp_path / "data")
    assert raw.images == [content]
    image = read_image(content)
    assert [[tuple(map(int, pixel)) for pixel in row] for row in np.asarray(image)] == pixels
    # Training sees the same colours at the same places: two flat halves survive any resizing.
    for draft in (False, True):
        (tile,) = processor.tile_file(content, draft).tiles  # 16 px, the picture at its top left
        height, width = (8, 16) if len(pixels) == 1 else (16, 8)
        assert tuple(tile[:, 0, 0].tolist()) == pixels[0][0]
        assert tuple(tile[:, height - 1, width - 1].tolist()) == pixels[-1][-1]


@pytest.mark.parametrize("size", [(1, 1), (1, 30_000), (30_000, 1)])
def test_row_24_extreme_shapes_are_tiled(
    tmp_path: Path, processor: Processor, size: tuple[int, int]
) -> None:
    for format_name in ("PNG", "JPEG"):
        folder = tmp_path / format_name
        pack([chat("k", encoded(Image.new("RGB", size, GREEN), format_name))], folder)
        for draft in (False, True):
            (batch,) = loader(folder, processor, draft=draft).one_epoch()
            assert batch.keys == ("k",)
            pixels = batch.inputs.images.pixels
            assert 1 <= len(pixels) <= processor.vision.max_num_tiles
            green = (pixels[:, 1] > 200) & (pixels[:, 0] < 40)
            assert green.any()


def test_row_24_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    huge = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")  # 50 kB
    pack([chat("bomb", huge.getvalue()), chat("k")], tmp_path / "data")
    (reject,) = read_rejects(tmp_path / "data")
    assert reject.key == "bomb" and "too many pixels" in reject.reason


def test_row_25_pictures_without_text_and_duplicate_keys_are_counted(
    tmp_path: Path, tars: Any
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("a", "b", "c", "d"):
        (pictures / f"{name}.png").write_bytes(encoded(Image.new("L", (2, 2), ord(name))))
    rows = [("a", "one"), ("b", ""), ("c", "  "), ("d", "four")]
    lines = [json.dumps({"image": f"{name}.png", "caption": words}) for name, words in rows]
    (pictures / "captions.jsonl").write_text("\n".join([*lines, '{"image": "a.png"}']))
    source = open_source(pictures)
    part = Part(source.items, source.pictures)
    pack_parts({"": part}, tmp_path / "data", PackSettings())
    assert [raw.key for raw in read_folder(tmp_path / "data")] == ["a", "d"]
    rejects = read_rejects(tmp_path / "data")
    assert Counter(reject.kind for reject in rejects) == {"no caption": 3}
    assert Manifest.read(tmp_path / "data").num_rejects == 3


def test_row_25_a_duplicate_key_in_a_foreign_shard_is_rejected_and_its_neighbours_are_not(
    tmp_path: Path, tars: Any
) -> None:
    first, second = (chat("k", words=words).sample.to_json().encode() for words in "ab")
    path = tmp_path / "foreign/a.tar"
    tars.write(path, [("k.json", first), ("m.json", first), ("k.json", second), ("n.json", first)])
    read, (reject,) = found(tmp_path / "foreign")
    assert [raw.key for raw in read] == ["k", "m", "n"]
    assert read[0].sample == Sample.parse(first)
    assert reject.key == "k" and reject.kind == "duplicate key" and "byte 2048" in reject.reason
    samples = [chat("k", words="a"), chat("k", words="b"), chat("n")]
    pack(samples, tmp_path / "data")
    assert list(read_folder(tmp_path / "data")) == [samples[0], samples[2]]
    assert [reject.kind for reject in read_rejects(tmp_path / "data")] == ["duplicate key"]


def test_row_26_special_tokens_in_a_caption_are_text(tmp_path: Path, processor: Processor) -> None:
    words = "a <|image|> <|eot_id|><|begin_of_text|><|start_header_id|>system<|end_header_id|>"
    picture = encoded(Image.new("L", (2, 2)))
    pack([chat("k", picture, words=words), chat("plain", picture)], tmp_path / "data")
    tokenizer = processor.tokenizer
    for batch in loader(tmp_path / "data", processor, batch_samples=1).one_epoch():
        (ids,) = batch.inputs.input_ids.tolist()
        assert ids.count(tokenizer.image_id) == 1 == len(batch.inputs.images.image_index)
        assert ids.count(tokenizer.eot_id) == 2 and ids.count(tokenizer.bos_id) == 1
        if batch.keys == ("k",):
            assert words in tokenizer.decode(ids)


class Trap:
    """Leaves a file behind if somebody unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", ["pyd", "pickle", "0.pkl", "pth", "cls", "npy", "0", ""])
@pytest.mark.parametrize("with_manifest", [True, False])
def test_row_27_a_pickle_member_is_refused_and_never_run(
    tmp_path: Path, tars: Any, suffix: str, with_manifest: bool
) -> None:
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    name = f"k.{suffix}" if suffix else "k"
    members = [("a.json", chat("a").sample.to_json().encode()), ("k.json", tars.talk)]
    members += [("k.0.png", tars.picture()), (name, trap)]
    entry = tars.write(tmp_path / "data/shard.tar", members)
    if with_manifest:
        tars.manifest(tmp_path / "data", entry)
    read, rejects = found(tmp_path / "data")
    assert [raw.key for raw in read] == ["a"]
    assert any(f"holds {name!r}: only KEY.json and KEY.0.jpg" in r.reason for r in rejects)
    with pytest.raises(UserError, match="only KEY"):
        list(read_folder(tmp_path / "data"))
    assert not sprung.exists()


def test_row_27_a_command_for_a_url_is_refused_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for location in ("pipe:touch sprung", "pipe:touch sprung #/", "file:x; touch sprung"):
        with pytest.raises(UserError, match="neither a path nor a URL that is read"):
            ShardSet.open(location)
    packed(tmp_path / "data")
    manifest = json.loads((tmp_path / "data/manifest.json").read_text())
    manifest["shards"][0]["name"] = "pipe:touch sprung.tar"
    (tmp_path / "data/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="is not a manifest"):
        ShardSet.open(tmp_path / "data")
    assert not (tmp_path / "sprung").exists()


def test_row_28_a_storage_that_fails_for_a_while_costs_nothing(tmp_path: Path, web: Any) -> None:
    samples = packed(web.folder / "data")
    quick = Patience(timeout_s=0.3, num_tries=4, first_wait_s=0.01)
    for name in ("manifest.json", "shard-000000.index.json", "shard-000000.tar"):
        web.faults[f"data/{name}"] = [503, "stall", "drop"]
    assert found(f"{web.url}/data", patience=quick) == (samples, [])


def test_row_28_a_storage_that_stays_away_stops_the_reading_and_loses_no_place(
    tmp_path: Path, web: Any
) -> None:
    samples = packed(web.folder / "data")
    shards = ShardSet.open(
        f"{web.url}/data", Patience(timeout_s=0.1, num_tries=2, first_wait_s=0.01)
    )
    places = list(shards.places)
    assert shards.read(places[:2]) == samples[:2]
    for fault in (503, "stall"):
        web.faults["data/shard-000001.tar"] = [fault] * 50
        with pytest.raises(StorageError, match=r"shard-000001\.tar could not be read in 2 tries"):
            shards.read(places[2:])
        web.faults.clear()
        assert shards.read(places[2:]) == samples[2:]
    # A file that is not there is another matter: its samples are rejected, the others come.
    (web.folder / "data/shard-000001.tar").unlink()
    assert [item for item in shards.read(places) if isinstance(item, RawSample)] == samples[:3]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_row_28_batches_go_on_behind_the_last_one_when_the_storage_is_back(
    web: Any, processor: Processor, num_workers: int
) -> None:
    packed(web.folder / "data", 24, samples_per_shard=4)

    def reading(location: str) -> Loader[ChatRows, ChatBatch]:
        shards = ShardSet.open(location, Patience(timeout_s=1, num_tries=2, first_wait_s=0.01))
        settings = {"pool_batches": 2, "shuffle_shards": 3, "num_workers": num_workers}
        return loader(web.folder / "data", processor, shards, **settings)

    whole = [batch.keys for batch in islice(reading(str(web.folder / "data")).batches(), 12)]
    remote = reading(f"{web.url}/data")
    taken = []
    # The whole message: nothing of a worker's own calls.
    with pytest.raises(StorageError, match=r"^http\S+\.tar could not be read in 2 tries[^\n]*$"):
        for batch in remote.batches():
            taken.append(batch.keys)
            if len(taken) == 3:
                for number in range(6):
                    web.faults[f"data/shard-00000{number}.tar"] = [503] * 50
    assert taken == whole[: len(taken)] and 3 <= len(taken) < 12
    web.faults.clear()
    resumed = reading(f"{web.url}/data")
    resumed.state = remote.state
    rest = [batch.keys for batch in islice(resumed.batches(), 12 - len(taken))]
    assert taken + rest == whole
