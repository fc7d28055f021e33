"""Bytes out of files, wherever they lie: a folder, memory, a web server, an object store.

Everything goes through fsspec. What is far away is read by range requests, several at a time, each
with a time limit, and asked for again when it fails for a passing reason.
"""

import asyncio
import errno
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from vlm.errors import UserError

# Nothing else is opened: fsspec knows protocols that run commands or unpack archives.
PROTOCOLS = ("file", "memory", "http", "https", "s3", "gs")
MAX_CONCURRENT = 16  # requests of one process
PASSING_STATUSES = (408, 425, 429)  # client errors that may be over the next time
BUFFER_BYTES = 1 << 20  # read ahead where headers are looked for


class MissingFile(UserError):
    """There is no such file."""


class StorageError(UserError):
    """A file may be there, but its storage does not give it."""


@dataclass(frozen=True)
class Patience:
    """How long a remote file is asked for.

    timeout_s: of one request, from asking to the last byte.
    first_wait_s: between the first two tries; it doubles with each.
    """

    timeout_s: float = 60.0
    num_tries: int = 6
    first_wait_s: float = 0.5


PATIENT = Patience()


@dataclass(frozen=True)
class ByteRange:
    """The bytes of a file from `start` to before `end`; None is the end of the file."""

    location: str
    start: int = 0
    end: int | None = None


def join(folder: str, name: str) -> str:
    """The location of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def read_file(location: str, patience: Patience = PATIENT) -> bytes:
    """Read a whole file.

    Raises:
        MissingFile: there is none.
        StorageError: it cannot be read, or not within the given patience.
    """
    (content,) = read_ranges([ByteRange(location)], patience)
    if isinstance(content, MissingFile):
        raise content
    return content


def read_ranges(
    ranges: Sequence[ByteRange], patience: Patience = PATIENT
) -> list[bytes | MissingFile]:
    """Read parts of files, those of remote ones at the same time.

    Returns:
        for each range its bytes, fewer where the file ends before; or an error, not raised, where
        there is no such file.
    Raises:
        StorageError: a file cannot be read, or not within the given patience.
    """
    results: list[bytes | MissingFile] = [b""] * len(ranges)
    by_protocol: dict[str, list[int]] = {}
    for place, wanted in enumerate(ranges):
        by_protocol.setdefault(_protocol(wanted.location), []).append(place)
    for places in by_protocol.values():
        group = [ranges[place] for place in places]
        filesystem = _filesystem(group[0].location)
        if isinstance(filesystem, AsyncFileSystem):
            found = sync(filesystem.loop, _fetch_all, filesystem, group, patience)
        else:
            found = _read_near(filesystem, group)
        for place, content in zip(places, found, strict=True):
            results[place] = content
    return results


def list_files(folder: str, suffix: str) -> list[str]:
    """Names of the files directly in a folder that end with `suffix`, sorted.

    Raises:
        MissingFile: there is no such folder.
        StorageError: it cannot be listed; web servers have no folders.
    """
    try:
        found = _filesystem(folder).ls(folder, detail=False)
    except FileNotFoundError:
        raise MissingFile(f"{folder} is missing") from None
    except OSError as error:
        raise StorageError(f"{folder} cannot be listed: {_reason(error)}") from error
    names = {str(path).rpartition("/")[2] for path in found}
    return sorted(name for name in names if name.endswith(suffix))


def fingerprint(location: str) -> str:
    """What changes when a file does: its size and its time or tag of change, as text.

    Raises:
        MissingFile: there is no such file.
        StorageError: its storage does not tell.
    """
    try:
        info = _filesystem(location).info(location)
    except FileNotFoundError:
        raise MissingFile(f"{location} is missing") from None
    except Exception as error:
        raise StorageError(f"{location} cannot be looked up: {_reason(error)}") from error
    tags = ("size", "mtime", "created", "ETag", "etag", "LastModified", "md5Hash")
    return " ".join(f"{tag}={info[tag]}" for tag in tags if tag in info)


class RangeFile(io.RawIOBase):
    """A file to read and seek in, which asks for the ranges that are read.

    `open_buffered` puts a buffer before it.
    """

    def __init__(self, location: str, patience: Patience = PATIENT) -> None:
        super().__init__()
        self.location = location
        self.patience = patience
        self.position = 0

    @staticmethod
    def open_buffered(location: str, patience: Patience = PATIENT) -> io.BufferedReader:
        """The file with a buffer, so that small reads make few requests."""
        return io.BufferedReader(RangeFile(location, patience), BUFFER_BYTES)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always, from the start or from here."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to `offset`; the end of a file is not known, so none is counted from there."""
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("seeking from the end")
        self.position = offset + (self.position if whence == io.SEEK_CUR else 0)
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` from the file; returns how many bytes there were.

        Raises:
            MissingFile, StorageError: as `read_file`.
        """
        wanted = ByteRange(self.location, self.position, self.position + len(buffer))
        (content,) = read_ranges([wanted], self.patience)
        if isinstance(content, MissingFile):
            raise content
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


def _protocol(location: str) -> str:
    # Windows-like drives and colons in names aside, a URL is what has `://` or runs a command.
    head, separator, _ = location.partition(":")
    if not separator or "/" in head:
        return "file"
    if head in PROTOCOLS and location.startswith(f"{head}://"):
        return head
    raise StorageError(
        f"{location} is neither a path nor a URL that is read "
        f"({', '.join(f'{name}://' for name in PROTOCOLS)})"
    )


def _filesystem(location: str) -> Any:
    protocol = _protocol(location)
    try:
        return fsspec.filesystem(protocol)
    except ImportError as error:
        raise StorageError(
            f"{location} needs a package that is not installed ({error}): "
            "install vlm[cloud]"
        ) from error


def _read_near(filesystem: Any, ranges: Sequence[ByteRange]) -> list[bytes | MissingFile]:
    by_file: dict[str, list[int]] = {}
    for place, wanted in enumerate(ranges):
        by_file.setdefault(wanted.location, []).append(place)
    results: list[bytes | MissingFile] = [b""] * len(ranges)
    for location, places in by_file.items():
        try:
            with filesystem.open(location, "rb") as file:
                for place in sorted(places, key=lambda place: ranges[place].start):
                    start, end = ranges[place].start, ranges[place].end
                    file.seek(start)
                    results[place] = file.read(-1 if end is None else end - start)
        except (FileNotFoundError, NotADirectoryError):
            for place in places:
                results[place] = MissingFile(f"{location} is missing")
        except OSError as error:
            raise StorageError(f"{location} cannot be read: {_reason(error)}") from error
    return results


async def _fetch_all(
    filesystem: AsyncFileSystem, ranges: Sequence[ByteRange], patience: Patience
) -> list[bytes | MissingFile]:
    gate = asyncio.Semaphore(MAX_CONCURRENT)

    async def fetch(wanted: ByteRange) -> bytes | MissingFile:
        async with gate:
            return await _fetch(filesystem, wanted, patience)

    return await asyncio.gather(*(fetch(wanted) for wanted in ranges))


async def _fetch(
    filesystem: AsyncFileSystem, wanted: ByteRange, patience: Patience
) -> bytes | MissingFile:
    location, start, end = wanted.location, wanted.start, wanted.end
    wait_s = patience.first_wait_s
    reason = ""
    for attempt in range(patience.num_tries):
        if attempt:
            await asyncio.sleep(wait_s)
            wait_s *= 2
        try:
            # Without an end the range stays open; without both the whole file is asked for.
            limits = {} if end is None else {"start": start, "end": end}
            answer = filesystem._cat_file(location, **limits)
            content: bytes = await asyncio.wait_for(answer, patience.timeout_s)
        except FileNotFoundError:
            return MissingFile(f"{location} is missing")
        except TimeoutError:
            reason = f"no whole answer within {patience.timeout_s:g} s"
        except Exception as error:  # each storage's client has errors of its own
            if _is_past_end(error):
                return b""
            if not _may_pass(error):
                raise StorageError(f"{location} cannot be read: {_reason(error)}") from error
            reason = _reason(error)
        else:
            if end is not None and len(content) > end - start:
                raise StorageError(f"{location}: the server ignores range requests (HTTP Range)")
            return content if end is not None else content[start:]
    raise StorageError(
        f"{location} could not be read in {patience.num_tries} tries, the last: {reason}; "
        "resume when its storage answers again"
    )


def _is_past_end(error: Exception) -> bool:
    """Whether a range was refused because the file ends before it."""
    return getattr(error, "status", None) == 416 or getattr(error, "errno", None) == errno.EINVAL


def _may_pass(error: Exception) -> bool:
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in PASSING_STATUSES
    return not isinstance(error, PermissionError | ImportError | ValueError)


def _reason(error: Exception) -> str:
    status = getattr(error, "status", None)
    if status is not None:
        return f"status {status}"
    detail = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {detail}" if detail else type(error).__name__
