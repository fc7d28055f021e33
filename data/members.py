"""The members of a tar, or of a piece of one, from any header on.

Python's `tarfile` takes a damaged header for the end of the tar, and webdataset goes by it: what
follows is lost without a word. Here every header is asked for by itself, so that the end, a cut
and damage are told apart.
"""

import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from webdataset.tariterators import base_plus_ext

from vlm.errors import UserError

_END = bytes(tarfile.BLOCKSIZE)  # the header that ends a tar
MAX_END_BYTES = 1 << 20  # of zeros behind the last member; tar pads to 10 KiB
_META = re.compile(r"__[^/]*__($|/)")  # webdataset keeps notes of its own under such names


class TarFault(Exception):
    """Why a tar cannot be read on, said of it: "is damaged at byte 1536: bad checksum"."""


class Member(NamedTuple):
    """A file in a tar: its header is at `start`, its content at `content`, the next at `end`.

    key: of the sample it belongs to, by webdataset's rule; the whole name where that has no suffix.
    suffix: what follows the key's dot, in lower case.
    """

    name: str
    key: str
    suffix: str
    start: int
    content: int
    num_bytes: int
    end: int


def read_members(
    file: BinaryIO, start: int = 0, end: int | None = None, base: int = 0
) -> Iterator[Member]:
    """Yield the files of a tar; folders, links and webdataset's own notes are passed over.

    Args:
        start: where the first header is.
        end: where the last member ends; None reads to the mark at the tar's end.
        base: where `file` begins in the tar, if it is a piece of one; only messages count from it.
    Raises:
        TarFault: the tar is damaged or ends before its end.
    """
    # Opened for writing, a TarFile reads nothing by itself and never says that it is through.
    tar = tarfile.TarFile(fileobj=file, mode="w")
    offset = start
    while offset != end:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
        if len(block) < tarfile.BLOCKSIZE:
            raise cut_short(base + offset + len(block))
        if block == _END and end is None:
            _check_end(file, offset)
            return
        file.seek(offset)
        try:
            info = tarfile.TarInfo.fromtarfile(tar)
        except UserError:  # the storage's: only the tar's own faults are meant here
            raise
        except (tarfile.TarError, ValueError, OverflowError, MemoryError) as error:
            if base + offset == 0:
                raise TarFault(f"is no tar: it begins with {block[:16]!r}") from None
            raise _damaged(base + offset, str(error)) from None
        if tar.offset <= offset or (end is not None and tar.offset > end):
            raise _damaged(base + offset, "a size that cannot be")
        if info.isreg() and not _META.match(info.name):
            key, suffix = base_plus_ext(info.name)
            yield Member(
                name=info.name,
                key=key or info.name,
                suffix=(suffix or "").lower(),
                start=offset,
                content=info.offset_data,
                num_bytes=info.size,
                end=tar.offset,
            )
        offset = tar.offset


def cut_short(missing: int) -> TarFault:
    """A tar that ends before this byte, which should be there."""
    return TarFault(f"is cut short: it has no byte {missing}" if missing else "is empty")


def _check_end(file: BinaryIO, offset: int) -> None:
    """A hole of zeros looks like the end of a tar, but for what follows."""
    file.seek(offset)
    rest = file.read(MAX_END_BYTES + 1)
    if len(rest) > MAX_END_BYTES or rest.count(0) != len(rest):
        raise _damaged(offset, "more follows what looks like its end")


def _damaged(offset: int, reason: str) -> TarFault:
    return TarFault(f"is damaged at byte {offset}: {reason}")
