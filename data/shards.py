"""Reading shards: back to samples, with every difference from the manifest an error."""

import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from webdataset.tariterators import (
    group_by_keys,
    tar_file_expander,
)

from data.pack import Manifest, ShardEntry
from data.schema import RawSample, Sample
from vlm.errors import UserError
from vlm.images import EXTENSIONS

PICTURE_EXTENSIONS = frozenset(EXTENSIONS.values()) | {"jpeg", "tiff"}


def read_folder(folder: Path) -> Iterator[RawSample]:
    """Yield every sample of a folder of shards, in the order in which they were written.

    Raises:
        UserError: no manifest, or a shard that differs from it.
    """
    for entry in Manifest.read(folder).shards:
        yield from read_shard(folder, entry)


def read_shard(folder: Path, entry: ShardEntry) -> list[RawSample]:
    """Read one shard.

    Only JSON and pictures are accepted, and pictures stay encoded: nothing in a shard is executed
    or unpickled. The shard is opened here as a plain file, so webdataset sees no URL, `pipe:`
    included.

    Raises:
        UserError: the shard is missing, cut short, damaged, or holds something else than the
            manifest says; names the shard and the counts.
    """
    path = folder / entry.name
    if not path.is_file():
        raise UserError(
            f"{path} is missing; the manifest lists it with {entry.num_samples} samples"
        )
    num_bytes = path.stat().st_size
    if num_bytes != entry.num_bytes:
        what = "is cut short at" if num_bytes < entry.num_bytes else "holds"
        raise UserError(f"{path} {what} {num_bytes} bytes; the manifest says {entry.num_bytes}")
    with path.open("rb") as stream:
        try:
            samples = [_raw_sample(group, path) for group in _groups(stream, path)]
        except UserError:
            raise
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            reason = error.args[0] if error.args else type(error).__name__
            raise UserError(f"{path} is damaged near byte {stream.tell()}: {reason}") from error
    # tarfile takes a corrupt header in the middle for the end, silently: only the count tells.
    if len(samples) != entry.num_samples:
        raise UserError(
            f"{path} holds {len(samples)} readable samples; the manifest says {entry.num_samples}: "
            "it is damaged or was changed, so pack or copy it again"
        )
    return samples


def _groups(stream: BinaryIO, path: Path) -> Iterable[dict[str, Any]]:
    members = tar_file_expander([{"url": path.name, "stream": stream}])
    groups: Iterable[dict[str, Any]] = group_by_keys(_known_members(members, path))
    return groups


def _known_members(members: Iterable[dict[str, Any]], path: Path) -> Iterator[dict[str, Any]]:
    # webdataset drops a name without an extension silently, and its decoders unpickle some others.
    for member in members:
        if member:  # the last one is an empty marker of the end
            name = member["fname"]
            suffix = name.rpartition("/")[2].partition(".")[2].lower()
            if suffix != "json" and not _is_picture(suffix):
                raise UserError(
                    f"{path} holds {name!r}: only KEY.json and KEY.0.jpg, KEY.1.png, ..."
                )
        yield member


def _is_picture(suffix: str) -> bool:
    index, _, extension = suffix.partition(".")
    return index.isdecimal() and extension in PICTURE_EXTENSIONS


def _raw_sample(group: dict[str, Any], path: Path) -> RawSample:
    key = group["__key__"]
    if "json" not in group:
        raise UserError(f"{path} holds pictures of {key!r} without {key}.json beside them")
    try:
        sample = Sample.parse(group["json"])
    except UserError as error:
        raise UserError(f"{path}: {key}.json: {error}") from None
    numbered = {int(name.split(".")[0]): group[name] for name in group if _is_picture(name)}
    if sorted(numbered) != list(range(sample.num_images)):
        raise UserError(
            f"{path}: {key} has pictures {sorted(numbered)} for {sample.num_images} places"
        )
    return RawSample(key, sample, [numbered[index] for index in range(sample.num_images)])
