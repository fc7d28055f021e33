"""Bytes out of files, wherever they lie: a folder, a web server, an object store.

Local files are opened as such. All others go through fsspec by range requests, several at a time,
each with a time limit, and are asked for again when a request fails for a reason that may pass.
"""

import asyncio
import errno
import io
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem, sync

from vlm.errors import UserError

T = TypeVar("T")

# Nothing else is opened: fsspec knows protocols that run commands or unpack archives.
PROTOCOLS = ("file", "memory", "http", "https", "s3", "gs")
WEB = ("http", "https")
MAX_CONCURRENT = 16  # requests of one process
PASSING_STATUSES = (408, 425, 429)  # client errors that may be over the next time
# Errors of the object stores' clients, by name: their packages may not be installed.
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError")
BUFFER_BYTES = 1 << 20  # read ahead where a remote file is read from its start

# fsspec's instances by process and protocol. After a fork the parent's stay here, unused: were
# they let go, the child would close the connections of the parent.
_filesystems: dict[tuple[int, str], Any] = {}


class MissingFile(UserError):
    """There is no such file."""


class StorageError(UserError):
    """A file may be there, but its storage does not give it."""


@dataclass(frozen=True)
class Patience:
    """How long a remote file is asked for.

    timeout_s: of one request, from asking to the last byte.
    first_wait_s: between the first two tries, give or take a half; it doubles with each.
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
    if content is None:
        raise MissingFile(f"{location} is missing")
    return content


def read_ranges(ranges: Sequence[ByteRange], patience: Patience = PATIENT) -> list[bytes | None]:
    """Read parts of files, those of remote ones at the same time.

    Returns:
        for each range its bytes, fewer where the file ends before; None where there is no file.
    Raises:
        StorageError: a file cannot be read, or not within the given patience.
    """
    results: list[bytes | None] = [None] * len(ranges)
    by_protocol: dict[str, list[int]] = {}
    for number, wanted in enumerate(ranges):
        by_protocol.setdefault(_protocol(wanted.location), []).append(number)
    for protocol, numbers in by_protocol.items():
        group = [ranges[number] for number in numbers]
        if protocol == "file":
            found = _read_local(group)
        else:
            filesystem = _filesystem(protocol, group[0].location)
            if isinstance(filesystem, AsyncFileSystem):
                found = sync(filesystem.loop, _fetch_all, filesystem, group, patience)
            else:
                found = [
                    _ask(
                        filesystem, "cat_file", wanted.location, start=wanted.start, end=wanted.end
                    )
                    for wanted in group
                ]
        for number, content in zip(numbers, found, strict=True):
            results[number] = content
    return results


def open_file(location: str, patience: Patience = PATIENT) -> BinaryIO:
    """Open a file to read it from its start; see `RangeFile` for a remote one.

    Raises:
        MissingFile, StorageError: as `read_file`, here or when it is read.
    """
    if _protocol(location) != "file":
        return io.BufferedReader(RangeFile(location, patience), BUFFER_BYTES)
    try:
        return open(_local_path(location), "rb")
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFile(f"{location} is missing") from None
    except OSError as error:
        raise StorageError(f"{location} cannot be read: {_reason(error)}") from error


def list_files(folder: str, suffix: str, patience: Patience = PATIENT) -> list[str]:
    """The names of the files directly in a folder that end with `suffix`, sorted.

    A web server has no folders: there nothing is found.

    Raises:
        MissingFile: there is no such folder.
        StorageError: it cannot be listed.
    """
    protocol = _protocol(folder)
    if protocol in WEB:
        return []
    if protocol == "file":
        try:
            names = os.listdir(_local_path(folder))
        except (FileNotFoundError, NotADirectoryError):
            raise MissingFile(f"{folder} is missing") from None
        except OSError as error:
            raise StorageError(f"{folder} cannot be listed: {_reason(error)}") from error
    else:
        found = _look_up("ls", folder, patience, detail=False)
        names = [str(path).rpartition("/")[2] for path in found]
    return sorted(name for name in names if name.endswith(suffix))


def file_tag(location: str, patience: Patience = PATIENT) -> str:
    """What changes when a file does, as text: its size, and its time or tag of change if known.

    Raises:
        MissingFile: there is no such file.
        StorageError: its storage does not tell.
    """
    if _protocol(location) != "file":
        return _tag(_look_up("info", location, patience))
    try:
        found = os.stat(_local_path(location))
        return f"size={found.st_size} mtime={found.st_mtime_ns}"
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFile(f"{location} is missing") from None
    except OSError as error:
        raise StorageError(f"{location} cannot be looked up: {_reason(error)}") from error


class RangeFile(io.RawIOBase):
    """A remote file to read and seek in, which asks for the ranges that are read."""

    def __init__(self, location: str, patience: Patience = PATIENT) -> None:
        super().__init__()
        self.location = location
        self.patience = patience
        self.position = 0

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
        if content is None:
            raise MissingFile(f"{self.location} is missing")
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


def _protocol(location: str) -> str:
    head, colon, _ = location.partition(":")
    if not colon or "/" in head:
        return "file"
    if head in PROTOCOLS and location.startswith(f"{head}://"):
        return head
    known = ", ".join(f"{name}://" for name in PROTOCOLS)
    raise StorageError(
        f"{location} is neither a path nor a URL that is read ({known}); write a path with a "
        "colon as ./NAME"
    )


def _local_path(location: str) -> str:
    return location.removeprefix("file://")


def _filesystem(protocol: str, location: str) -> Any:
    key = (os.getpid(), protocol)
    if key not in _filesystems:
        client = {"headers": {"Accept-Encoding": "identity"}, "raise_for_status": _check_answer}
        options: dict[str, Any] = {"client_kwargs": client} if protocol in WEB else {}
        try:
            _filesystems[key] = fsspec.filesystem(protocol, use_listings_cache=False, **options)
        except ImportError as error:
            raise StorageError(
                f"{location} needs a package that is not installed: pip install 'vlm[cloud]' "
                f"({error})"
            ) from error
    return _filesystems[key]


async def _check_answer(response: Any) -> None:
    """Refuse a whole file that comes for a range of it, before its bytes do."""
    wanted = response.request_info.headers.get("Range")
    if wanted is None or response.status != 200:
        return
    start, _, end = wanted.removeprefix("bytes=").partition("-")
    length = response.content_length
    if length is not None and start == "0" and end and length <= int(end) + 1:
        return  # the file is no longer than the range
    response.close()
    raise StorageError(
        f"{response.url} cannot be read in parts: its server ignores range requests and sends "
        f"the whole file ({response.content_type}, {length} bytes)"
    )


def _read_local(ranges: Sequence[ByteRange]) -> list[bytes | None]:
    by_file: dict[str, list[int]] = {}
    for number, wanted in enumerate(ranges):
        by_file.setdefault(wanted.location, []).append(number)
    results: list[bytes | None] = [None] * len(ranges)
    for location, numbers in by_file.items():
        try:
            with open(_local_path(location), "rb") as file:
                num_bytes = os.fstat(file.fileno()).st_size
                for number in numbers:
                    start, end = ranges[number].start, ranges[number].end
                    # Room is made for all that is asked for, so no more than there can be.
                    end = num_bytes if end is None else min(end, num_bytes)
                    file.seek(start)
                    results[number] = file.read(max(0, end - start))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise StorageError(f"{location} cannot be read: {_reason(error)}") from error
    return results


async def _fetch_all(
    filesystem: AsyncFileSystem, ranges: Sequence[ByteRange], patience: Patience
) -> list[bytes | None]:
    gate = asyncio.Semaphore(MAX_CONCURRENT)

    async def fetch(wanted: ByteRange) -> bytes | None:
        if wanted.end is not None and wanted.end <= wanted.start:
            return b""
        # Without an end the whole file is asked for: some servers know no open range.
        limits = {} if wanted.end is None else {"start": wanted.start, "end": wanted.end}
        ask = partial(filesystem._cat_file, wanted.location, **limits)
        async with gate:
            content = await _patiently(ask, wanted.location, patience)
        if content is None or wanted.end is None:
            return content and content[wanted.start :]
        if len(content) > wanted.end - wanted.start:
            raise StorageError(f"{wanted.location}: its server sends more than it was asked for")
        return content

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(fetch(wanted)) for wanted in ranges]
    except BaseExceptionGroup as errors:  # one failed, the others were cancelled
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _patiently(
    ask: Callable[[], Awaitable[T]], location: str, patience: Patience
) -> T | bytes | None:
    """The answer to a request: None where there is no file, nothing from behind its end."""
    wait_s = patience.first_wait_s
    reason = ""
    for attempt in range(patience.num_tries):
        if attempt:
            # Uneven, so that many processes do not all come back at once; the run's own random
            # streams are left alone.
            await asyncio.sleep(wait_s * random.SystemRandom().uniform(0.5, 1.5))
            wait_s *= 2
        try:
            return await asyncio.wait_for(ask(), patience.timeout_s)
        except FileNotFoundError:
            return None
        except TimeoutError:
            reason = f"no whole answer within {patience.timeout_s:g} s"
        except StorageError:
            raise
        except Exception as error:  # each storage's client has errors of its own
            if _is_past_end(error):
                return b""
            if not _may_pass(error):
                raise StorageError(f"{location} cannot be read: {_reason(error)}") from error
            reason = _reason(error)
    raise StorageError(
        f"{location} could not be read in {patience.num_tries} tries, the last: {reason}; go on "
        "when its storage answers again"
    )


def _look_up(question: str, location: str, patience: Patience, **options: Any) -> Any:
    """Ask a remote filesystem's `ls` or `info`."""
    filesystem = _filesystem(_protocol(location), location)
    if isinstance(filesystem, AsyncFileSystem):
        ask = partial(getattr(filesystem, f"_{question}"), location, **options)
        if location.startswith("http"):
            ask = partial(_web_info, filesystem, location)
        found = sync(filesystem.loop, _patiently, ask, location, patience)
    else:
        found = _ask(filesystem, question, location, **options)
    if found is None:
        raise MissingFile(f"{location} is missing")
    return found


async def _web_info(filesystem: Any, location: str) -> dict[str, Any]:
    # fsspec's own would say of any failure that there is no such file.
    session = await filesystem.set_session()
    async with session.head(filesystem.encode_url(location), allow_redirects=True) as answer:
        if answer.status == 404:
            raise FileNotFoundError(location)
        answer.raise_for_status()
        return {"size": answer.content_length, **answer.headers}


def _ask(filesystem: Any, question: str, location: str, **options: Any) -> Any:
    try:
        return getattr(filesystem, question)(location, **options)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _tag(info: dict[str, Any]) -> str:
    tags = ("size", "created", "ETag", "etag", "LastModified", "Last-Modified", "md5Hash")
    return " ".join(f"{tag}={info[tag]}" for tag in tags if tag in info)


def _status(error: Exception) -> int | None:
    """The HTTP status that an error stands for; its name differs between the clients."""
    for name in ("status", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int):
            return value
    return None


def _is_past_end(error: Exception) -> bool:
    """Whether a range was refused because the file ends before it."""
    return _status(error) == 416 or getattr(error, "errno", None) == errno.EINVAL


def _may_pass(error: Exception) -> bool:
    status = _status(error)
    if status is not None and 400 <= status < 500:
        return status in PASSING_STATUSES
    return (
        not isinstance(error, PermissionError | ImportError | ValueError)
        and type(error).__name__ not in NO_CREDENTIALS
    )


def _reason(error: Exception) -> str:
    status = _status(error)
    if status is not None:
        return f"status {status}"
    detail = getattr(error, "strerror", None) or str(error).partition("\n")[0]
    return f"{type(error).__name__}: {detail}" if detail else type(error).__name__
