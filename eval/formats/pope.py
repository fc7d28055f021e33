"""POPE: JSON Lines of yes/no questions about objects, a file for each way of choosing them.

Source: https://github.com/RUCAIBox/POPE, output/coco (`question_id`, `image`, `text`, `label`).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.files import Files, Row
from eval.formats.options import Options, read_options
from eval.items import Item
from vlm.errors import UserError

SETTINGS = ("random", "popular", "adversarial")


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions; the type is the setting, out of the row or of the file's name.

    A file counts its questions from 1, so with several files an id is `SETTING/ID`.

    Raises:
        UserError: a row lacks a field, its picture is missing, or nothing names the setting.
    """
    read_options(Options, options)
    several = len(files.paths("questions")) > 1
    for where, row in files.rows("questions"):
        setting = row.get("setting") or _setting(where)
        key = str(row["question_id"]) if "question_id" in row else where.rpartition(":")[2]
        names = [row["image"]]
        if row["image"].startswith("COCO_"):  # since 2017 without the subset in front
            names.append(row["image"].rpartition("_")[2])
        yield Item(
            id=f"{setting}/{key}" if several else key,
            question=row["text"],
            images=(files.picture(*names),),
            answers=(_label(row),),
            type=setting,
        )


def _setting(where: str) -> str:
    name = Path(where.rpartition(":")[0]).name
    for setting in SETTINGS:
        if setting in name:
            return setting
    raise UserError(f"{where} has no 'setting', and the file is named for none: {SETTINGS}")


def _label(row: Row) -> str:
    label = str(row["label"]).strip().lower()
    if label not in ("yes", "no"):
        raise UserError(f"{row.where} has the label {row['label']!r}, needed: yes or no")
    return label
