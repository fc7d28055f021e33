"""Images from a folder that the operator allows, and from nowhere else."""

import os
import stat
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

REFUSED = "files are read from the folder that this server allows only, and no link is followed"


class FolderError(Exception):
    """A file that is not given out; the message names no path."""


def read_allowed_file(url: str, folder: Path, max_bytes: int) -> bytes:
    """Return the bytes of a `file://` URL below `folder`.

    Every step of the path is opened from the one before it, without following links, so nothing
    that is swapped meanwhile leads out.

    Args:
        folder: absolute, itself without links.
    Raises:
        FolderError: outside, a link, no regular file, or more than `max_bytes`.
    """
    split = urlsplit(url)
    path = PurePosixPath(unquote(split.path))
    if split.netloc not in ("", "localhost") or "\0" in str(path) or ".." in path.parts:
        raise FolderError(REFUSED)
    if not path.is_relative_to(folder) or path == PurePosixPath(folder):
        raise FolderError(REFUSED)
    try:
        descriptor = _open_below(folder, path.relative_to(folder).parts)
    except OSError as error:
        raise FolderError(REFUSED) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FolderError(REFUSED)
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise FolderError(f"the file has more than {max_bytes} bytes")
    return content


def _open_below(folder: Path, steps: tuple[str, ...]) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(folder, flags | os.O_DIRECTORY)
    for number, step in enumerate(steps, start=1):
        # Without O_NONBLOCK a named pipe would be waited for.
        kind = os.O_DIRECTORY if number < len(steps) else os.O_NONBLOCK
        try:
            inner = os.open(step, flags | kind, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = inner
    return descriptor
