"""Samples are read by position, as they were packed, and a fault costs what it touches."""

import os
import pickle
import random
import tarfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch.utils.data
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

import data.shards
from data.index import index_name
from data.pack import Manifest, pack
from data.schema import RawSample, Reject, Sample
from data.shards import INDEXES_KEPT, ShardSet, read_folder
from data.storage import MissingFile
from vlm.errors import UserError

Place = tuple[int, int]


def chat(key: str, *images: bytes, words: str = "that") -> RawSample:
    messages = [
        {"role": "user", "content": [{"type": "image"}] * len(images) + [text("what?")]},
        {"role": "assistant", "content": [text(words)]},
    ]
    return RawSample(key, Sample.parse({"messages": messages}), list(images))


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


@pytest.fixture
def samples(tars: Any) -> list[RawSample]:
    """23 samples of 0 to 2 pictures; one with a name too long for a tar header, one in a folder."""
    names = [f"k{number}" for number in range(21)] + ["long" * 60, "a/b/c"]
    return [
        chat(name, *[tars.picture(number + m) for m in range(number % 3)], words="x" * number * 90)
        if number
        else chat(name)
        for number, name in enumerate(names)
    ]


@pytest.fixture
def folder(tmp_path: Path, samples: list[RawSample]) -> Path:
    """The samples in six shards of four."""
    pack(samples, tmp_path / "data", samples_per_shard=4)
    return tmp_path / "data"


def without_indexes(folder: Path) -> Path:
    for path in folder.glob("*.index.json"):
        path.unlink()
    return folder


def test_every_order_of_places_gives_their_samples(folder: Path, samples: list[RawSample]) -> None:
    shards = ShardSet.open(folder)
    places = list(shards.places)
    assert shards.num_samples == (4, 4, 4, 4, 4, 3) and len(places) == 23
    by_place = dict(zip(places, samples, strict=True))
    rng = random.Random(0)
    for _ in range(20):
        wanted = rng.choices(places, k=rng.randrange(30))  # some of them twice
        assert shards.read(wanted) == [by_place[place] for place in wanted]
    assert list(read_folder(folder)) == list(shards.read_all()) == samples


def test_runs_of_any_length_give_the_same(
    folder: Path, samples: list[RawSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    for gap, longest in [(0, 1), (0, 10**6), (10**6, 10**6), (3000, 5000)]:
        monkeypatch.setattr(data.shards, "MAX_GAP_BYTES", gap)
        monkeypatch.setattr(data.shards, "MAX_RUN_BYTES", longest)
        shards = ShardSet.open(folder)
        assert shards.read(list(shards.places)) == samples
        assert shards.read([(0, 0), (0, 3), (2, 1)]) == [samples[0], samples[3], samples[9]]


def test_neighbours_are_read_together_and_shards_apart(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    read_ranges = data.shards.read_ranges

    def watched(ranges: Any, patience: Any) -> Any:
        asked.append(ranges)
        return read_ranges(ranges, patience)

    monkeypatch.setattr(data.shards, "read_ranges", watched)
    shards = ShardSet.open(folder)
    shards.read(list(shards.places))
    indexes, content = asked
    assert [Path(wanted.location).name for wanted in indexes] == [
        f"shard-{number:06d}.index.json" for number in range(6)
    ]
    assert [Path(wanted.location).name for wanted in content] == [
        f"shard-{number:06d}.tar" for number in range(6)
    ]
    shards.read([(1, 3), (1, 0)])
    assert asked[2] == []  # the index is known
    assert len(asked[3]) == 1


def test_opening_reads_no_shard_and_no_index(folder: Path) -> None:
    manifest = Manifest.read(folder)
    for path in folder.iterdir():
        if path.name != "manifest.json":
            path.unlink()
    shards = ShardSet.open(str(folder))
    assert shards.fingerprint == manifest.sha256
    assert shards.num_samples == tuple(entry.num_samples for entry in manifest.shards)


def test_few_indexes_are_kept_however_many_shards_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = INDEXES_KEPT + 10
    pack([chat(f"k{i}") for i in range(number)], tmp_path / "data", samples_per_shard=1)
    shards = ShardSet.open(tmp_path / "data")
    assert len(shards.read(list(shards.places))) == number
    shards.read([(number - 1, 0)])
    assert list(shards._indexes) == [*range(10, number - 1), number - 1]
    shards.read([(10, 0)])
    shards.read([(0, 0)])  # 11 was not used for longest
    assert list(shards._indexes) == [*range(12, number), 10, 0]


def test_threads_and_pickles_read_the_same(folder: Path, samples: list[RawSample]) -> None:
    shards = ShardSet.open(folder)
    places = list(shards.places)
    shards.read(places)
    copy = pickle.loads(pickle.dumps(shards))
    assert copy == shards and not copy._indexes

    def shuffled(seed: int) -> bool:
        order = random.Random(seed).sample(range(23), 23)
        return copy.read([places[i] for i in order]) == [samples[i] for i in order]

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(shuffled, range(200)))


def as_they_are(batch: list[Any]) -> list[Any]:
    return batch


class Reading(torch.utils.data.Dataset[Any]):
    """What a worker of a loader does."""

    def __init__(self, shards: ShardSet, places: list[Place]) -> None:
        self.shards = shards
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Any:
        return os.getpid(), self.shards.read([self.places[number]])[0]


def test_forked_workers_read_the_same(folder: Path, samples: list[RawSample]) -> None:
    shards = ShardSet.open(folder)
    shards.read([(0, 0)])
    loader = torch.utils.data.DataLoader(
        Reading(shards, list(shards.places)),
        batch_size=5,
        num_workers=2,
        collate_fn=as_they_are,
        multiprocessing_context="fork",
    )
    read = [item for batch in loader for item in batch]
    assert [sample for _, sample in read] == samples
    assert len({process for process, _ in read} - {os.getpid()}) == 2


def test_a_place_that_the_manifest_does_not_have_is_a_mistake_of_the_caller(folder: Path) -> None:
    shards = ShardSet.open(folder)
    for place in [(5, 3), (0, -1)]:
        with pytest.raises(IndexError, match=r"samples: no place"):
            shards.read([place])
    with pytest.raises(IndexError):
        shards.read([(6, 0)])


def test_a_shard_without_its_index_is_read_all_the_same_and_its_index_kept(
    folder: Path, samples: list[RawSample], cache_home: Path
) -> None:
    without_indexes(folder)
    assert list(read_folder(folder)) == samples
    kept = list(cache_home.glob("vlm/index/*.json"))
    assert len(kept) == 6 and not list(folder.glob("*.index.json"))
    times = [path.stat().st_mtime_ns for path in kept]
    assert list(read_folder(folder)) == samples
    assert [path.stat().st_mtime_ns for path in kept] == times


def test_the_index_of_another_content_is_not_believed(
    folder: Path, samples: list[RawSample]
) -> None:
    first, second = (folder / index_name(f"shard-00000{number}.tar") for number in (0, 1))
    first.write_bytes(second.read_bytes())
    with pytest.warns(UserWarning, match=r"shard-000000\.index\.json belongs to another content"):
        assert list(read_folder(folder)) == samples
    first.write_text("{}")
    with pytest.warns(UserWarning, match=r"shard-000000\.index\.json is not an index"):
        assert list(read_folder(folder)) == samples


def test_a_cached_index_is_made_again_when_the_shard_changes(tmp_path: Path, tars: Any) -> None:
    path = tmp_path / "data/one.tar"
    for keys in ["ab", "xyz"]:
        members = [(f"{key}.json", chat(key).sample.to_json().encode()) for key in keys]
        tars.write(path, members)
        assert [raw.key for raw in read_folder(path.parent)] == list(keys)


def rejects(folder: Path) -> dict[str, str]:
    """Key and reason of every sample that cannot be had; all have the shard."""
    shards = ShardSet.open(folder)
    found = [raw for raw in shards.read_each(shards.places) if isinstance(raw, Reject)]
    assert all(reject.shard in shards.names for reject in found)
    return {reject.key: reject.reason for reject in found}


def test_pictures_must_match_the_places_in_the_chat(tmp_path: Path, tars: Any) -> None:
    for members, complaint in [
        ([("k.json", tars.talk)], r"k has pictures \[\] for 1 places"),
        ([("k.json", tars.talk), ("k.1.png", b"")], r"k has pictures \['1.png'\] for 1 places"),
        ([("k.json", tars.talk), ("k.0.png", b""), ("k.0.jpg", b"")], "for 1 places"),
        ([("k.json", tars.talk), ("k.0.png", b""), ("k.0.png", b"")], r"holds 'k\.0\.png' twice"),
        ([("k.0.png", b"")], "without k.json"),
        ([("k.json", b"{}"), ("k.0.png", b"")], r"k\.json: messages: "),
        ([("k.json", b"\x80\x04"), ("k.0.png", b"")], r"k\.json: "),
    ]:
        entry = tars.write(tmp_path / "shard.tar", members)
        tars.manifest(tmp_path, entry)
        with pytest.raises(UserError, match=rf"k: bad sample: .*shard\.tar, byte 0: .*{complaint}"):
            list(read_folder(tmp_path))


def test_a_shard_of_more_samples_than_the_manifest_says_is_not_guessed_at(
    tmp_path: Path, tars: Any
) -> None:
    members = [(f"{key}.json", chat(key).sample.to_json().encode()) for key in "abc"]
    entry = tars.write(tmp_path / "shard.tar", members)
    tars.manifest(tmp_path, entry.model_copy(update={"num_samples": 2}))
    reason = f"bad shard: {tmp_path}/shard.tar holds 3 samples; the manifest says 2"
    assert rejects(tmp_path) == {"shard.tar#0": reason, "shard.tar#1": reason}
    tars.manifest(tmp_path, entry.model_copy(update={"num_samples": 4}))
    assert rejects(tmp_path) == {"shard.tar#3": reason.replace("says 2", "says 4")}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[RawSample]]:
    """One shard of six samples, to be broken and mended."""
    folder = tmp_path_factory.mktemp("sound") / "data"
    samples = [chat(f"k{i}", words="x" * (1 + i * 300)) for i in range(6)]
    pack(samples, folder)
    return folder, samples


@settings(max_examples=200)
@given(
    edits=st.lists(st.tuples(st.integers(0, 12_000), st.binary(max_size=600)), max_size=3),
    index_edits=st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), max_size=2),
    length=st.integers(0, 20_000) | st.just(99_999),
    with_index=st.booleans(),
)
def test_whatever_the_bytes_are_each_place_gives_its_sample_or_a_reason(
    sound: tuple[Path, list[RawSample]],
    edits: list[tuple[int, bytes]],
    index_edits: list[tuple[int, bytes]],
    length: int,
    with_index: bool,
) -> None:
    folder, samples = sound
    path, beside = folder / "shard-000000.tar", folder / "shard-000000.index.json"
    whole = {name: name.read_bytes() for name in (path, beside)}
    try:
        path.write_bytes(edited(whole[path], edits)[:length])
        beside.write_bytes(edited(whole[beside], index_edits))
        if not with_index:
            beside.unlink()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an index that is none any more
            found = ShardSet.open(folder).read([(0, place) for place in range(6)])
    finally:
        for name, content in whole.items():
            name.write_bytes(content)
    assert len(found) == 6
    broken = edits or length < len(whole[path]) or (with_index and index_edits)
    assert broken or found == samples
    for item in found:
        if isinstance(item, Reject):
            assert str(path) in item.reason and item.shard == path.name
        elif not edits:  # what changed inside of a file, only its hash can tell
            assert item in samples


def edited(content: bytes, edits: list[tuple[int, bytes]]) -> bytes:
    for place, piece in edits:
        content = content[:place] + piece + content[place + len(piece) :]
    return content


def test_webdataset_reads_what_pack_wrote(folder: Path, samples: list[RawSample]) -> None:
    theirs = []
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as stream:  # webdataset itself leaves files open
            theirs += list(group_by_keys(tar_file_expander([{"url": "", "stream": stream}])))
    assert [found["__key__"] for found in theirs] == [raw.key for raw in samples]
    assert [Sample.parse(found["json"]) for found in theirs] == [raw.sample for raw in samples]
    assert [
        [content for name, content in sorted(found.items()) if name.endswith("png")]
        for found in theirs
    ] == [raw.images for raw in samples]


def written_by_webdataset(folder: Path, samples: list[RawSample]) -> Path:
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "%04d.tar"), maxcount=5, verbose=0) as writer:
        for raw in samples:
            pictures = {f"{number}.png": content for number, content in enumerate(raw.images)}
            chat_json = {"json": raw.sample.to_json().encode()}
            writer.write({"__key__": raw.key, **chat_json, **pictures})
    return folder


def test_shards_of_webdatasets_writer_are_read_without_a_manifest(
    tmp_path: Path, samples: list[RawSample]
) -> None:
    foreign = written_by_webdataset(tmp_path / "foreign", samples)
    shards = ShardSet.open(foreign)
    assert shards.num_samples == (5, 5, 5, 5, 3)
    assert list(shards.read_all()) == samples
    assert shards.read([(4, 0), (0, 2)]) == [samples[20], samples[2]]


def test_a_fingerprint_without_a_manifest_is_the_datas(
    tmp_path: Path, samples: list[RawSample]
) -> None:
    one = written_by_webdataset(tmp_path / "one", samples)
    two = written_by_webdataset(tmp_path / "two", samples)  # at another time, elsewhere
    other = written_by_webdataset(tmp_path / "other", samples[:-1])
    found = [ShardSet.open(path).fingerprint for path in (one, two, other)]
    assert found[0] == found[1] != found[2]


def test_a_fault_that_ends_a_tar_without_a_manifest_counts_as_a_sample(
    tmp_path: Path, samples: list[RawSample], tars: Any
) -> None:
    foreign = written_by_webdataset(tmp_path / "foreign", samples)
    before = ShardSet.open(foreign).fingerprint
    with tarfile.open(foreign / "0001.tar") as tar:
        number = [name.partition(".")[0] for name in tar.getnames()].index("k7")
    offset = tars.break_header(foreign / "0001.tar", number)
    (foreign / "0009.tar").write_bytes(b"")
    shards = ShardSet.open(foreign)
    assert shards.num_samples == (5, 3, 5, 5, 3, 1) and shards.fingerprint != before
    assert rejects(foreign) == {
        "0001.tar#2": f"bad shard: {foreign}/0001.tar is damaged at byte {offset}: bad checksum",
        "0009.tar#0": f"bad shard: {foreign}/0009.tar is empty",
    }
    kept = [raw for raw in shards.read_each(shards.places) if isinstance(raw, RawSample)]
    assert kept == [*samples[:7], *samples[10:]]


def test_a_folder_without_shards_is_refused(tmp_path: Path, folder: Path) -> None:
    for empty in (tmp_path / "none", tmp_path):
        with pytest.raises(MissingFile, match=r"holds no manifest\.json"):
            ShardSet.open(empty)
    with pytest.raises(MissingFile, match=f"name one of {folder}"):
        ShardSet.open(tmp_path)
