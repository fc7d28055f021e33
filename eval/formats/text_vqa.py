"""TextVQA: an object with its rows in `data`, or the hub's tables.

Source: https://textvqa.org/dataset
"""

from collections.abc import Iterator, Mapping
from typing import Any

from eval.files import Files, Row
from eval.formats.options import Options, read_options
from eval.formats.pictures import is_table, row_picture
from eval.items import Item


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions, with ten answers each; `ocr_tokens` are a field if the file has them.

    Raises:
        UserError: a row lacks a field, or its picture is missing.
    """
    read_options(Options, options)
    for row in data_rows(files, "questions"):
        image_id = row["image_id"]
        yield Item(
            id=str(row["question_id"]),
            question=row["question"],
            images=(row_picture(files, row, f"{image_id}.jpg", f"{image_id}.png"),),
            answers=tuple(row["answers"]),
            fields={"ocr_tokens": ", ".join(row.get("ocr_tokens") or ())},
        )


def data_rows(files: Files, role: str) -> Iterator[Row]:
    """Rows of tables, or of an object that has them in `data`."""
    if is_table(files, role):
        yield from (row for _, row in files.rows(role))
        return
    path = files.path(role)
    content = Row(path.name, files.json(role))
    for number, values in enumerate(content["data"]):
        yield Row(f"{path.name} row {number}", values)
