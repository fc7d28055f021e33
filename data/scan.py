"""The index of a shard that came without one, made from the tar's headers.

It is kept in the user's cache folder (`data.cache`), never beside the data.
"""

import os

from data.cache import cache_file, keep
from data.index import ShardIndex
from data.members import TarFault, read_members
from data.storage import PATIENT, Patience, file_tag, open_file
from vlm.errors import UserError


def cached_index(shard: str, patience: Patience = PATIENT) -> ShardIndex:
    """The index of a shard: the one that was kept for this content of it, or a new one.

    Raises:
        MissingFile: there is no such shard.
        StorageError: its storage does not give it.
    """
    tag = file_tag(shard, patience)
    file = cache_file("index", _location(shard))
    try:
        return ShardIndex.parse(file.read_bytes(), tag)
    except (OSError, UserError):  # none, or one of an earlier content
        index = scan_shard(shard, patience)
    if index.fault is None:  # what is broken may be mended without another tag
        keep(file, index.to_json(tag))
    return index


def scan_shard(shard: str, patience: Patience = PATIENT) -> ShardIndex:
    """Make the index of a shard by reading its headers.

    A shard that is cut short, damaged, empty, or no tar at all gives the samples before that place
    and names the fault.

    Raises:
        MissingFile: there is no such shard.
        StorageError: its storage does not give it.
    """
    keys: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    fault = None
    with open_file(shard, patience) as file:
        try:
            for member in read_members(file):
                key = member.key
                if not keys or keys[-1] != key:
                    keys.append(key)
                    starts.append(member.start)
                    ends.append(member.end)
                ends[-1] = member.end
        except TarFault as found:
            fault = str(found)
    if not keys and fault is None:
        fault = "holds no sample"
    return ShardIndex(tuple(keys), tuple(starts), tuple(ends), fault)


def _location(shard: str) -> str:
    return shard if "://" in shard else os.path.abspath(shard)
