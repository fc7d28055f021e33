"""Where each sample lies in a shard, so that it can be read without what comes before it.

`pack` writes `NAME.index.json` beside each `NAME.tar`; `data.scan` makes the index of shards that
came without.
"""

import json
from dataclasses import dataclass
from functools import cached_property

from vlm.errors import UserError

INDEX_SUFFIX = ".index.json"
VERSION = 1


@dataclass(frozen=True)
class ShardIndex:
    """The samples of a shard in their order.

    keys: of the samples.
    starts, ends: bytes of the shard: from the first header of a sample to behind its last member.
    fault: why there are no more samples, said of the shard ("is damaged at byte 1536: bad
        checksum"); None for a whole shard.
    """

    keys: tuple[str, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    fault: str | None = None

    @cached_property
    def repeated(self) -> frozenset[int]:
        """Places of samples whose key a sample before them has."""
        if len(set(self.keys)) == len(self.keys):
            return frozenset()
        first: dict[str, int] = {}
        return frozenset(
            place for place, key in enumerate(self.keys) if first.setdefault(key, place) != place
        )

    def to_json(self, shard: str) -> str:
        """The index of a whole shard as it is kept.

        Args:
            shard: what its content is known by, such as its SHA-256.
        """
        content = {
            "version": VERSION,
            "shard": shard,
            "keys": self.keys,
            "starts": self.starts,
            "ends": self.ends,
        }
        return json.dumps(content, separators=(",", ":")) + "\n"

    @staticmethod
    def parse(content: bytes, shard: str) -> "ShardIndex":
        """Read an index.

        Raises:
            UserError: it is not one, or one of another content than `shard`; says which.
        """
        try:
            found = json.loads(content)
            if found["version"] != VERSION:
                raise ValueError(f"version {found['version']!r}")
            index = ShardIndex(
                tuple(map(str, found["keys"])),
                tuple(map(int, found["starts"])),
                tuple(map(int, found["ends"])),
            )
            index._check()
            same = found["shard"] == shard
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(f"is not an index of a shard: {error!r}") from None
        if not same:
            raise UserError("belongs to another content of the shard")
        return index

    def _check(self) -> None:
        if not len(self.keys) == len(self.starts) == len(self.ends):
            raise ValueError("its lists differ in length")
        edges = [edge for pair in zip(self.starts, self.ends, strict=True) for edge in pair]
        if not edges or edges[0] < 0 or edges != sorted(edges):
            raise ValueError("its samples do not follow one another")


def index_name(shard_name: str) -> str:
    """The name of a shard's index, which lies beside it."""
    return shard_name.removesuffix(".tar") + INDEX_SUFFIX
