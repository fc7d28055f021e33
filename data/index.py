"""Where each sample lies in a shard, so that it can be read without what comes before it.

`pack` writes `NAME.index.json` beside each `NAME.tar`. For shards that came without, the headers of
the tar are read once and the index is kept in the user's cache folder, never beside the data:
`$XDG_CACHE_HOME/vlm/index`, by default `~/.cache/vlm/index`. Where that folder cannot be written
there is a warning, and each process reads the headers again.
"""

import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from webdataset.tariterators import base_plus_ext

from data.storage import MissingFile, RangeFile, read_file
from vlm.errors import UserError

INDEX_SUFFIX = ".index.json"
VERSION = 1
EMPTY_BLOCK = bytes(tarfile.BLOCKSIZE)


class SampleEntry(NamedTuple):
    """A sample's part of a shard: all its members with their headers, one after the other."""

    key: str
    offset: int
    num_bytes: int
    num_members: int


@dataclass(frozen=True)
class ShardIndex:
    """The samples of a shard in their order.

    fault: why the rest of the shard cannot be read, with the byte; None for a whole shard.
    """

    samples: tuple[SampleEntry, ...]
    fault: str | None = None

    @cached_property
    def repeated(self) -> frozenset[int]:
        """Places of samples whose key a sample before them has."""
        seen: set[str] = set()
        places = []
        for place, sample in enumerate(self.samples):
            if sample.key in seen:
                places.append(place)
            seen.add(sample.key)
        return frozenset(places)

    def to_json(self, identity: str) -> str:
        """The index as it is kept; `identity` is that of the shard's content."""
        content = {
            "version": VERSION,
            "shard": identity,
            "fault": self.fault,
            "samples": self.samples,
        }
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"

    @staticmethod
    def parse(content: bytes, identity: str, location: str) -> "ShardIndex":
        """Read an index.

        Raises:
            UserError: it is not one, or one of another shard.
        """
        try:
            found = json.loads(content)
            if found["version"] != VERSION:
                raise ValueError(f"version {found['version']!r}")
            samples = tuple(
                SampleEntry(str(key), int(offset), int(num_bytes), int(num_members))
                for key, offset, num_bytes, num_members in found["samples"]
            )
            same, fault = found["shard"] == identity, found["fault"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{location} is not an index of a shard: {error!r}") from None
        if not same:
            raise UserError(
                f"{location} belongs to another content of the shard: remove it, and the headers "
                "are read anew"
            )
        return ShardIndex(samples, fault)


def index_name(shard_name: str) -> str:
    """The name of a shard's index, which lies beside it."""
    return shard_name.removesuffix(".tar") + INDEX_SUFFIX


def load_index(shard: str, identity: str) -> ShardIndex:
    """The index of a shard: that beside it, else the cached one, else made from its headers.

    Args:
        shard: location of the tar.
        identity: of its content, by which the index is known; any text.
    Raises:
        MissingFile: there is no index and no shard.
        UserError: an index of another shard; a storage that does not answer.
    """
    beside = index_name(shard)
    try:
        return ShardIndex.parse(read_file(beside), identity, beside)
    except MissingFile:
        pass
    cached = _cache_file(shard, identity)
    if cached.is_file():
        try:
            return ShardIndex.parse(cached.read_bytes(), identity, str(cached))
        except (OSError, UserError):  # a broken cache is made again
            pass
    index = scan_shard(shard)
    if index.fault is None:  # a shard may be mended
        _keep(cached, index.to_json(identity))
    return index


def scan_shard(shard: str) -> ShardIndex:
    """Make the index of a shard by reading its headers.

    A shard that is cut short, damaged, empty, or no tar at all gives the samples before that place
    and names the fault.

    Raises:
        MissingFile: there is no such file.
        StorageError: its storage does not give it.
    """
    samples: list[SampleEntry] = []
    with RangeFile.open_buffered(shard) as file:
        fault = None
        offset = 0
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    end = tar.offset
                    if member.isreg() and not _is_meta(member.name):
                        _add(samples, member.name, offset, end - offset)
                    offset = end
                    tar.members.clear()  # or it would keep every header
            fault = _fault_at_end(file, offset)
        except (tarfile.TarError, EOFError, ValueError) as error:
            fault = f"damaged at byte {offset}: {error}"
    return ShardIndex(tuple(samples), fault)


def _add(samples: list[SampleEntry], name: str, offset: int, num_bytes: int) -> None:
    key = base_plus_ext(name)[0] or name
    if samples and samples[-1].key == key:
        last = samples[-1]
        grown = offset + num_bytes - last.offset
        samples[-1] = SampleEntry(key, last.offset, grown, last.num_members + 1)
    else:
        samples.append(SampleEntry(key, offset, num_bytes, 1))


def _is_meta(name: str) -> bool:
    # webdataset leaves these out without a word; here they belong to no sample either.
    return re.match(r"__[^/]*__($|/)", name) is not None


def _fault_at_end(file: io.BufferedReader, offset: int) -> str | None:
    """Why the tar ends at `offset`; None where it is meant to. tarfile does not tell."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if block == EMPTY_BLOCK:
        return None
    if len(block) < tarfile.BLOCKSIZE:
        return f"cut short at byte {offset + len(block)}"
    return f"damaged at byte {offset}: no header of a member"


def _cache_file(shard: str, identity: str) -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(f"{shard}\n{identity}".encode()).hexdigest()
    return Path(home) / "vlm" / "index" / f"{name}.json"


def _keep(file: Path, content: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=file.parent, delete=False, encoding="utf-8"
        ) as temporary:
            temporary.write(content)
        os.replace(temporary.name, file)  # another process may write the same
    except OSError as error:
        warnings.warn(
            f"the index of a shard cannot be kept in {file.parent} "
            f"({error.strerror or error}): every process reads the tar's headers again",
            stacklevel=2,
        )
