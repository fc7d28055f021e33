"""A file of captions that grows while they are made, and is the only state of their making."""

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from vlm.errors import UserError

COLUMNS = ("image", "caption")
# How a line of the JSONL form begins.
JSONL_HEAD = b'{"image": "'
CSV_HEAD = b"image,caption\n"

Row = tuple[str, str]


class CaptionFile:
    """Captions by picture name, a line each, as JSONL or CSV by the file's ending.

    Opened again it tells which pictures it has, and a last line that was cut off in the middle is
    taken away: so a run that was killed goes on. The JSONL form can be packed for training.

    names: the pictures that it has captions of.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or begin it.

        Raises:
            UserError: its name ends otherwise, it cannot be written, or it holds something else.
        """
        if path.suffix not in (".jsonl", ".csv"):
            raise UserError(f"{path}: captions are written to a file that ends in .jsonl or .csv")
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
            end = _end_of_whole_lines(content, path)
            self.names = {name for name, _ in _rows(content, end, path)}
            if end < len(content):
                os.truncate(path, end)
            self._file = path.open("ab")
            if path.suffix == ".csv" and not end:
                self._append(CSV_HEAD)
        except OSError as error:
            raise self._not_written(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, rows: Sequence[Row]) -> None:
        """Append names and captions; when this returns they are on the disk.

        Raises:
            UserError: they cannot be written.
        """
        text = csv_text(rows) if self.path.suffix == ".csv" else _jsonl_text(rows)
        try:
            self._append(text.encode("utf-8", "surrogateescape"))
        except OSError as error:
            raise self._not_written(error) from error
        self.names.update(name for name, _ in rows)

    def _append(self, content: bytes) -> None:
        self._file.write(content)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _not_written(self, error: OSError) -> UserError:
        return UserError(f"{self.path} cannot be written: {error.strerror or error}")


def csv_text(rows: Iterable[Row]) -> str:
    """Rows as CSV, without the header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _jsonl_text(rows: Iterable[Row]) -> str:
    lines = [json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False) for row in rows]
    return "".join(f"{line}\n" for line in lines)


def _end_of_whole_lines(content: bytes, path: Path) -> int:
    """Where the last whole line ends; what follows was being written when the process died."""
    end = content.rfind(b"\n") + 1
    # In CSV, a line feed between quotes belongs to a name.
    while path.suffix == ".csv" and content.count(b'"', 0, end) % 2:
        end = content.rfind(b"\n", 0, end - 1) + 1
    return end


def _rows(content: bytes, end: int, path: Path) -> list[Row]:
    """The rows of the whole lines.

    Raises:
        UserError: something in the file is none of ours, so it is left as it is.
    """
    text = content[:end].decode("utf-8", "surrogateescape")
    head = CSV_HEAD if path.suffix == ".csv" else JSONL_HEAD
    rest = content[end:] if path.suffix == ".jsonl" or not end else b""
    if path.suffix == ".csv":
        found = list(csv.reader(io.StringIO(text, newline="")))
        ours = found[:1] in ([], [list(COLUMNS)]) and all(len(row) == 2 for row in found)
        rows = [(row[0], row[1]) for row in found[1:]] if ours else None
    else:
        rows = _jsonl_rows(text)
    if rows is None or rest[: len(head)] != head[: len(rest)]:
        raise UserError(
            f"{path} exists and holds something else than captions by picture; name another file"
        )
    return rows


def _jsonl_rows(text: str) -> list[Row] | None:
    rows: list[Row] = []
    for line in text.split("\n")[:-1]:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            return None
        match row:
            case {"image": str(name), "caption": str(caption)} if len(row) == 2:
                rows.append((name, caption))
            case _:
                return None
    return rows
