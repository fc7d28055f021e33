"""SugarCrepe: a caption of a picture, and a wrong one that differs in a few words.

Source: https://github.com/RAIVNLab/sugar-crepe, data (an object by key in each of seven files); a
tar of these files and JSON Lines with `category` are read too.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from eval.files import Files, Row
from eval.formats.options import Options, read_options
from eval.items import Item
from vlm.errors import UserError


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the pairs as two choices; the type is the category.

    The right one is the first of even keys and the second of odd ones, so that preferring a place,
    in a tie too, is worth nothing.

    Raises:
        UserError: a row lacks a field, or its picture is missing.
    """
    read_options(Options, options)
    for row in _rows(files):
        right_first = int(row["key"]) % 2 == 0
        pair = (row["caption"], row["negative_caption"])
        yield Item(
            id=f"{row['category']}/{row['key']}",
            question="",
            images=(files.picture(row["filename"] if "filename" in row else row["image"]),),
            choices=pair if right_first else pair[::-1],
            correct=(0 if right_first else 1,),
            type=row["category"],
        )


def _rows(files: Files) -> Iterator[Row]:
    for name, text in files.texts("pairs"):
        if not name.endswith(".json"):
            continue
        try:
            content = json.loads(text)
        except ValueError as error:
            raise UserError(f"{name} is no JSON: {error}") from error
        category = name.removesuffix(".json")
        for key, values in content.items():
            yield Row(f"{name} {key}", {**values, "key": key, "category": category})
    if any(path.suffix == ".jsonl" for path in files.paths("pairs")):
        yield from (row for _, row in files.rows("pairs"))
