"""Rows of parquet files, with the pictures in their cells read when they are needed."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data.tables import PictureTable, TableFile, read_tables
from eval.items import Picture
from vlm.errors import UserError


def read_parquet(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows with where they stand; a cell that holds a picture gives a `Picture`.

    Args:
        name: what the file is called in places and in the names of pictures.
    Raises:
        UserError: pyarrow is missing, or the file is damaged.
    """
    file = TableFile(path, name, None)
    pictures = PictureTable(path, [file], [])
    for index, (_, row) in enumerate(read_tables(path, [file]).rows):
        yield (
            f"{name}:{index}",
            {
                column: Picture(cell, partial(_read, pictures, cell))
                if cell == f"{name}/{index}/{column}"
                else cell
                for column, cell in row.items()
            },
        )


def _read(pictures: PictureTable, name: str) -> bytes:
    content = pictures.find(name)
    if content is None:
        raise UserError(f"{pictures.path} has no picture in {name!r}, only a path")
    return content
