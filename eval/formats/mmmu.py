"""MMMU: the hub's tables, one a subject.

Source: https://huggingface.co/datasets/MMMU/MMMU
"""

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from eval.files import Files, Row
from eval.formats.options import Options, read_options
from eval.formats.pictures import cell_picture
from eval.items import LETTERS, Item, Picture
from vlm.errors import UserError

MOST_IMAGES = 7


class MmmuOptions(Options):
    """What the field `instruction` says: of questions with choices, and of those without."""

    choice_instruction: str
    open_instruction: str


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions; the type is the subject. `<image 1>` in a text is the first picture.

    Raises:
        UserError: a row lacks a field, or its answer is none of its choices.
    """
    chosen = read_options(MmmuOptions, options)
    for _, row in files.rows("questions"):
        choices: tuple[str, ...] = ()
        if row["question_type"] == "multiple-choice":
            choices = tuple(ast.literal_eval(row["options"]))
        asked = chosen.choice_instruction if choices else chosen.open_instruction
        yield Item(
            id=row["id"],
            question=row["question"],
            images=_pictures(row),
            answers=() if choices else _answers(row["answer"]),
            choices=choices,
            correct=(_correct(row, choices),) if choices else (),
            type=_subject(row["id"]),
            fields={"instruction": asked},
        )


def _pictures(row: Row) -> tuple[Picture, ...]:
    columns = [f"image_{number}" for number in range(1, MOST_IMAGES + 1)]
    return tuple(cell_picture(row, name) for name in columns if row.get(name) is not None)


def _answers(answer: str) -> tuple[str, ...]:
    """An open question's answers; several are written as a Python list."""
    if answer.startswith("["):
        return tuple(ast.literal_eval(answer))
    return (answer,)


def _correct(row: Row, choices: tuple[str, ...]) -> int:
    letters = LETTERS[: len(choices)]
    if row["answer"] not in letters or not row["answer"]:
        raise UserError(f"{row.where} has the answer {row['answer']!r}, needed: one of {letters}")
    return letters.index(row["answer"])


def _subject(key: str) -> str:
    """`Art_Theory` of `validation_Art_Theory_3`."""
    return "_".join(key.split("_")[1:-1])
