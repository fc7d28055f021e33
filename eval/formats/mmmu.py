"""MMMU: the hub's tables, one a subject; to score by also the JSON files of its repository.

Source: https://huggingface.co/datasets/MMMU/MMMU; https://github.com/MMMU-Benchmark/MMMU, eval:
`answer_dict_val.json` (`question_type` and `ground_truth` by id) and the released outputs
(`index2ans`), which have no questions.
"""

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eval.files import Files, Row
from eval.formats.options import Options, read_options
from eval.formats.pictures import cell_picture
from eval.items import LETTERS, Item, Picture
from vlm.errors import UserError

MOST_IMAGES = 7
# `answer_dict_val.json` says which letter is right and not how many there are.
MOST_CHOICES = 9


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
    for row in _rows(files):
        choices = _choices(row) if row["question_type"] == "multiple-choice" else ()
        asked = chosen.choice_instruction if choices else chosen.open_instruction
        yield Item(
            id=row["id"],
            question=row.get("question", "") if files.names_only else row["question"],
            images=_pictures(row),
            answers=() if choices else _answers(row["answer"]),
            choices=choices,
            correct=(_correct(row, choices),) if choices else (),
            type=_subject(row["id"]),
            fields={"instruction": asked},
        )


def _rows(files: Files) -> Iterator[Row]:
    paths = files.paths("questions")
    if not files.names_only or paths[0].suffix != ".json" or len(paths) > 1:
        yield from (row for _, row in files.rows("questions"))
        return
    content = files.json("questions")
    if isinstance(content, dict):
        content = [
            {"id": key, "answer": values["ground_truth"], **values}
            for key, values in content.items()
        ]
    for number, values in enumerate(content, start=1):
        yield Row(f"{paths[0].name}:{number}", values)


def _choices(row: Row) -> tuple[str, ...]:
    if "index2ans" in row:
        return tuple(row["index2ans"].values())
    if "ground_truth" in row:
        return tuple(LETTERS[:MOST_CHOICES])
    options = row["options"]
    return tuple(ast.literal_eval(options) if isinstance(options, str) else options)


def _pictures(row: Row) -> tuple[Picture, ...]:
    columns = [f"image_{number}" for number in range(1, MOST_IMAGES + 1)]
    return tuple(cell_picture(row, name) for name in columns if row.get(name) is not None)


def _answers(answer: str | Sequence[str]) -> tuple[str, ...]:
    """An open question's answers; several are a list, or written as Python writes one."""
    if not isinstance(answer, str):
        return tuple(answer)
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
