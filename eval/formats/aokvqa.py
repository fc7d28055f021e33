"""A-OKVQA: rows of JSON, JSON Lines or parquet, asked for an answer or for a choice.

Source: https://github.com/allenai/aokvqa
"""

import ast
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from eval.files import Files
from eval.formats.options import Options, read_options
from eval.formats.pictures import coco_names, row_picture
from eval.items import Item


class AokvqaOptions(Options):
    """setting: `direct` answers, ten people's, or one of four `choices`.

    difficult: whether questions count that are marked as hard to answer directly; the paper leaves
        them out of the direct setting.
    """

    setting: Literal["direct", "choices"]
    difficult: bool = True


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions; the type says whether one is marked as difficult to answer directly.

    Raises:
        UserError: a row lacks a field, or its picture is missing.
    """
    chosen = read_options(AokvqaOptions, options)
    for _, row in files.rows("questions"):
        difficult = bool(row["difficult_direct_answer"])
        if difficult and not chosen.difficult:
            continue
        names = coco_names(int(row["image_id"])) if "image_id" in row else (row["question_id"],)
        direct = chosen.setting == "direct"
        answers = row["direct_answers"]
        if isinstance(answers, str):  # the hub's table has the list as Python writes it
            answers = ast.literal_eval(answers)
        yield Item(
            id=row["question_id"],
            question=row["question"],
            images=(row_picture(files, row, *names),),
            answers=tuple(answers) if direct else (),
            choices=() if direct else tuple(row["choices"]),
            correct=() if direct else (int(row["correct_choice_idx"]),),
            type="difficult" if difficult else "other",
        )
