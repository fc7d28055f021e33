"""DocVQA: an object with its rows in `data`, or the hub's tables.

Source: https://www.docvqa.org/datasets/docvqa
"""

from collections.abc import Iterator, Mapping
from typing import Any

from eval.files import Files
from eval.formats.options import Options, read_options
from eval.formats.pictures import row_picture
from eval.formats.text_vqa import data_rows
from eval.items import Item, Picture


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions; the type is the first of a question's types.

    Raises:
        UserError: a row lacks a field, or its picture is missing.
    """
    read_options(Options, options)
    for row in data_rows(files, "questions"):
        if isinstance(row["image"], Picture):
            page = f"{row['ucsf_document_id']}_{row['ucsf_document_page_no']}.png"
        else:
            page = row["image"]
        yield Item(
            id=str(row["questionId"]),
            question=row["question"],
            images=(row_picture(files, row, page),),
            answers=tuple(row["answers"]),
            type=next(iter(row.get("question_types") or ()), "all"),
        )
