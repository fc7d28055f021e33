"""GQA: an object of questions by id, or the hub's tables of questions and of pictures.

Source: https://cs.stanford.edu/people/dorarad/gqa/download.html
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from eval.files import Files, Row
from eval.formats.options import Options, read_options
from eval.formats.pictures import cell_picture, is_table
from eval.items import Item, Picture
from vlm.errors import UserError


class GqaOptions(Options):
    """type: by what figures are reported: `verify`, `query`, ... or `object`, `attribute`, ..."""

    type: Literal["structural", "semantic"] = "structural"


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions, each with its one answer.

    Raises:
        UserError: a row lacks a field, or its picture is missing.
    """
    chosen = read_options(GqaOptions, options)
    if is_table(files, "questions"):
        pictures = {
            str(row["id"]): cell_picture(row, "image", str(row["id"]))
            for _, row in files.rows("pictures")
        }
        for _, row in files.rows("questions"):
            yield _item(row, str(row["id"]), _picture(pictures, row), chosen)
        return
    name = files.path("questions").name
    for key, values in files.json("questions").items():
        row = Row(f"{name} question {key}", values)
        yield _item(row, key, files.picture(f"{row['imageId']}.jpg"), chosen)


def _picture(pictures: Mapping[str, Picture], row: Row) -> Picture:
    if row["imageId"] not in pictures:
        raise UserError(f"{row.where} shows {row['imageId']!r}, which no table of pictures has")
    return pictures[row["imageId"]]


def _item(row: Row, key: str, picture: Picture, options: GqaOptions) -> Item:
    types = row.get("types") or {}
    return Item(
        id=key,
        question=row["question"],
        images=(picture,),
        answers=(row["answer"],),
        type=types.get(options.type) or "all",
    )
