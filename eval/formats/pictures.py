"""What pictures of published benchmarks are called, and pictures in the cells of tables."""

from dataclasses import replace

from eval.files import Files, Row
from eval.items import Picture
from vlm.errors import UserError

PARQUET = ".parquet"


def is_table(files: Files, role: str) -> bool:
    """Whether a role's files are parquet, as on the hub, and not the original ones."""
    return files.paths(role)[0].suffix == PARQUET


def coco_names(image_id: int, *subsets: str) -> tuple[str, ...]:
    """The names of a COCO picture: since 2017 its number, before that with its subset in front.

    >>> coco_names(139, "val2014")
    ('COCO_val2014_000000000139.jpg', '000000000139.jpg')
    """
    number = f"{image_id:012d}.jpg"
    return (*(f"COCO_{subset}_{number}" for subset in subsets), number)


def cell_picture(row: Row, column: str, name: str | None = None) -> Picture:
    """The picture in a cell of a table, under a name that rows which show the same one share.

    Args:
        name: None keeps the cell's own.
    Raises:
        UserError: the cell has none.
    """
    cell = row[column]
    if not isinstance(cell, Picture):
        raise UserError(f"{row.where} has no picture in {column!r}")
    return cell if name is None else replace(cell, name=name)


def row_picture(files: Files, row: Row, *names: str) -> Picture:
    """A row's picture: in its cell `image`, or the file of one of these names.

    Raises:
        UserError: there is none.
    """
    if isinstance(row.get("image"), Picture):
        return cell_picture(row, "image", names[0])
    return files.picture(*names)
