"""MMBench: a table of tab-separated values with the pictures in it, or the hub's tables.

Source: https://github.com/open-compass/MMBench. A file may hold the rotated copies of CircularEval
already: their indices are those of the questions plus a multiple of a million.
"""

import base64
import binascii
import csv
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from eval.files import Files, Row
from eval.formats.options import Options, read_options
from eval.formats.pictures import cell_picture, is_table
from eval.items import Item, Picture
from vlm.errors import UserError

COPIES_APART = 1_000_000
LETTERS = "ABCDE"
# A shorter cell is no picture but the index of the row that has it.
LONGEST_INDEX = 64


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions, and published copies in the group of their question.

    The type is the ability of the second level, or the category where a file has no such. The
    field `hint` is the hint and a line end, or nothing.

    Raises:
        UserError: a row lacks a field, an answer or a picture.
    """
    read_options(Options, options)
    if is_table(files, "questions"):
        rows = [(row, cell_picture(row, "image")) for _, row in files.rows("questions")]
    elif files.names_only:  # a table to score by may lack the pictures
        csv.field_size_limit(sys.maxsize)
        rows = [(row, files.picture(row["index"])) for _, row in files.rows("questions")]
    else:
        rows = list(_with_pictures(files))
    has_copies = any(int(row["index"]) >= COPIES_APART for row, _ in rows)
    for row, picture in rows:
        group = str(int(row["index"]) % COPIES_APART) if has_copies else None
        yield _item(row, picture, group)


def _item(row: Row, picture: Picture, group: str | None) -> Item:
    choices = {letter: row[letter] for letter in LETTERS if not _empty(row.get(letter))}
    answer = row.get("answer")
    if answer not in choices:
        raise UserError(
            f"{row.where} has the answer {answer!r}, needed: one of {', '.join(choices)} (the "
            "test part is published without answers; use the dev part)"
        )
    level_two = row.get("l2-category") or row.get("L2-category")
    return Item(
        id=str(row["index"]),
        question=row["question"],
        images=(picture,),
        choices=tuple(choices.values()),
        correct=(list(choices).index(answer),),
        type=level_two or row["category"],
        group=group,
        fields={"hint": "" if _empty(row.get("hint")) else f"{row['hint']}\n"},
        facts={"category": row["category"]},
    )


def _empty(cell: Any) -> bool:
    """Whether a cell holds nothing: pandas writes that as `nan` too."""
    return not isinstance(cell, str) or cell.strip().lower() in ("", "nan", "none")


def _with_pictures(files: Files) -> Iterator[tuple[Row, Picture]]:
    """Rows without the cell `image`, and the picture that it has or points to."""
    found: dict[str, Picture] = {}
    rows = []
    for path in files.paths("questions"):
        for row, cell, picture in _rows(path):
            if cell is None:
                found[row["index"]] = picture
            rows.append((row, cell or row["index"]))
    for row, index in rows:
        if index not in found:
            raise UserError(f"{row.where} shows the picture of row {index!r}, which has none")
        yield row, found[index]


def _rows(path: Path) -> Iterator[tuple[Row, str | None, Picture]]:
    """Each row, the index of the row that has its picture if it has none, its own picture.

    What the cell `image` holds is decoded when it is needed, out of its place in the file.
    """
    csv.field_size_limit(sys.maxsize)
    with path.open("rb") as file:
        lines = _Lines(file)
        table = csv.reader(lines, delimiter="\t")
        header = next(table, [])
        if "image" not in header or "index" not in header:
            raise UserError(f"{path} has the columns {', '.join(header)}; needs index and image")
        column = header.index("image")
        start = lines.position
        for values in table:
            row = Row(f"{path.name}:{table.line_num}", dict(zip(header, values, strict=False)))
            cell = row.pop("image", "")
            picture = Picture(row["index"], partial(_decode, path, start, lines.position, column))
            yield row, cell if len(cell) <= LONGEST_INDEX else None, picture
            start = lines.position


class _Lines:
    """A file's lines as text, and the byte behind the last one."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.position = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self.file)
        encoding = "utf-8-sig" if self.position == 0 else "utf-8"
        self.position += len(line)
        return line.decode(encoding)


def _decode(path: Path, start: int, end: int, column: int) -> bytes:
    csv.field_size_limit(sys.maxsize)
    with path.open("rb") as file:
        file.seek(start)
        text = file.read(end - start).decode("utf-8-sig")
    (row,) = csv.reader(text.splitlines(keepends=True), delimiter="\t")
    try:
        return base64.b64decode(row[column], validate=True)
    except binascii.Error as error:
        raise UserError(f"{path}, row {row[0]}: the picture is no base64: {error}") from error
