"""Shards in object stores, through their real clients, which talk to a server on this machine."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.config import conf

from data import storage
from data.pack import pack
from data.schema import RawSample, Reject, Sample
from data.shards import ShardSet
from data.storage import ByteRange, MissingFile, Patience, StorageError, list_files, read_ranges

QUICK = Patience(timeout_s=2.0, num_tries=2, first_wait_s=0.01)
LISTING = """<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult><Name>bucket</Name><Prefix>data/</Prefix><IsTruncated>false</IsTruncated>
<KeyCount>2</KeyCount>{}</ListBucketResult>"""
ENTRY = """<Contents><Key>{}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>
<ETag>"{}"</ETag><Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>"""


def samples(number: int) -> list[RawSample]:
    content = [{"type": "text", "text": "that"}]
    messages = [{"role": role, "content": content} for role in ("user", "assistant")]
    return [RawSample(f"k{i}", Sample.parse({"messages": messages}), []) for i in range(number)]


@pytest.fixture
def s3(web: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket whose objects are the files of `web`; returns its URL."""
    pytest.importorskip("s3fs", reason="the cloud extra is not installed")
    web.error = b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>"
    (web.folder / "bucket").mkdir()
    retries = {"retries": {"max_attempts": 0}}
    settings = {"anon": True, "endpoint_url": web.url, "config_kwargs": retries}
    monkeypatch.setitem(conf, "s3", settings)
    before = dict(storage._filesystems)
    yield "s3://bucket"
    for key in storage._filesystems.keys() - before.keys():
        del storage._filesystems[key]
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_shards_in_a_bucket_are_read_by_ranges(s3: str, web: Any) -> None:
    packed = samples(7)
    pack(packed, web.folder / "bucket/data", samples_per_shard=3)
    shards = ShardSet.open(f"{s3}/data", QUICK)
    assert shards.read([(2, 0), (0, 1)]) == [packed[6], packed[1]]
    assert list(shards.read_all()) == packed
    (web.folder / "bucket/data/shard-000001.tar").unlink()
    lost = [item for item in shards.read_each(shards.places) if isinstance(item, Reject)]
    assert [reject.key for reject in lost] == ["k3", "k4", "k5"]
    assert "s3://bucket/data/shard-000001.tar is missing" in lost[0].reason
    ranges = [span for name, span in web.asked if name.endswith("shard-000000.tar")]
    assert ranges and None not in ranges


def test_a_bucket_is_listed_for_tars_without_a_manifest(s3: str, web: Any, tars: Any) -> None:
    path = web.folder / "bucket/data/a.tar"
    tars.write(path, [("k.json", samples(1)[0].sample.to_json().encode())])
    entries = ENTRY.format("data/a.tar", "1", path.stat().st_size) + ENTRY.format("data/b", "2", 1)
    web.listings["bucket"] = LISTING.format(entries).encode()
    assert list_files(f"{s3}/data", ".tar", QUICK) == ["a.tar"]
    assert [raw.key for raw in ShardSet.open(f"{s3}/data", QUICK).read_all()] == ["k"]


def test_nothing_lies_behind_the_end_of_an_object(s3: str, web: Any) -> None:
    (web.folder / "bucket/a").write_bytes(b"abc")
    web.error = b"<Error><Code>InvalidRange</Code><Message>range</Message></Error>"
    wanted = [ByteRange(f"{s3}/a", start, end) for start, end in [(1, 9), (5, 9), (2, 2)]]
    assert read_ranges(wanted, QUICK) == [b"bc", b"", b""]


def test_a_bucket_that_refuses_or_stays_away_is_an_error(s3: str, web: Any) -> None:
    (web.folder / "bucket/a").write_bytes(b"abc")
    wanted = [ByteRange(f"{s3}/a", 0, 2)]
    web.error = b"<Error><Code>SlowDown</Code><Message>slow</Message></Error>"
    web.faults["bucket/a"] = [503]
    assert read_ranges(wanted, Patience(5.0, 3, 0.01)) == [b"ab"]
    web.faults["bucket/a"] = [503] * 50
    with pytest.raises(StorageError, match="could not be read in 2 tries"):
        read_ranges(wanted, QUICK)
    web.error = b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>"
    web.faults["bucket/a"] = [403] * 50
    web.asked.clear()
    with pytest.raises(StorageError, match="cannot be read: PermissionError"):
        read_ranges(wanted, QUICK)
    assert len(web.asked) == 1


def test_a_bucket_without_credentials_is_asked_once(
    s3: str, web: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(conf, "s3", {"endpoint_url": web.url})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    start = time.perf_counter()
    with pytest.raises(StorageError, match="cannot be read: NoCredentialsError"):
        read_ranges([ByteRange(f"{s3}/a", 0, 2)])
    assert time.perf_counter() - start < 5


def test_a_folder_that_is_not_there_is_missing(s3: str, web: Any, tmp_path: Path) -> None:
    web.listings["bucket"] = LISTING.format("").encode()
    with pytest.raises(MissingFile, match=r"holds no manifest\.json"):
        ShardSet.open(f"{s3}/nothing", QUICK)


def test_ranges_of_google_cloud_storage(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Else it asks over gRPC, which this server does not speak, what kind of bucket there is.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    pytest.importorskip("gcsfs", reason="the cloud extra is not installed")
    monkeypatch.setitem(conf, "gs", {"token": "anon", "endpoint_url": web.url})
    monkeypatch.setattr(storage, "_filesystems", dict(storage._filesystems))
    objects = web.folder / "download/storage/v1/b/bucket/o"
    objects.mkdir(parents=True)
    (objects / "a").write_bytes(b"abcdef")
    web.faults["download/storage/v1/b/bucket/o/a"] = [503]
    spans = [("a", 1, 4), ("none", 0, 3), ("a", 9, 12)]
    wanted = [ByteRange(f"gs://bucket/{name}", start, end) for name, start, end in spans]
    assert read_ranges(wanted, Patience(5.0, 2, 0.01)) == [b"bcd", None, b""]
    web.faults["download/storage/v1/b/bucket/o/a"] = [403] * 9
    with pytest.raises(StorageError, match="Forbidden"):
        read_ranges(wanted[:1], Patience(5.0, 2, 0.01))
