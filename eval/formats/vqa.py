"""VQA v2 and OK-VQA: questions and annotations in two files, or the hub's tables.

Source: https://visualqa.org/vqa_v2.html (`questions` with `question_id`, `image_id`, `question`;
`annotations` with ten `answers`, `answer_type`), https://okvqa.allenai.org (the same, with the
names of its `question_types`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from eval.files import Files, Row
from eval.formats.options import Options, read_options
from eval.formats.pictures import coco_names, is_table, row_picture
from eval.items import Item
from vlm.errors import UserError

SUBSET = "val2014"


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions, with all ten answers.

    The type is the answer's (`yes/no`, `number`, `other`); OK-VQA's is the name of the question's.

    Raises:
        UserError: a question without annotation, or a row that lacks a field.
    """
    read_options(Options, options)
    if is_table(files, "questions"):
        for _, row in files.rows("questions"):
            yield _item(files, row, row, SUBSET, {})
        return
    path = files.path("questions")
    questions = Row(path.name, files.json("questions"))
    annotations = Row(files.path("annotations").name, files.json("annotations"))
    by_question = {row["question_id"]: row for row in annotations["annotations"]}
    names = annotations.get("question_types", {})
    subset = questions.get("data_subtype", SUBSET)
    for number, values in enumerate(questions["questions"]):
        row = Row(f"{path.name} question {number}", values)
        found = by_question.get(row["question_id"])
        if found is None:
            raise UserError(f"{annotations.where} has no question {row['question_id']}")
        where = f"{annotations.where} question {row['question_id']}"
        yield _item(files, row, Row(where, found), subset, names)


def _item(
    files: Files, question: Row, annotation: Row, subset: str, names: Mapping[str, str]
) -> Item:
    # OK-VQA's table on the hub does not number its pictures.
    shown: tuple[str, ...] = (str(question["question_id"]),)
    if "image_id" in question or "image" not in question:
        shown = coco_names(int(question["image_id"]), subset)
    kind = names.get(annotation.get("question_type", ""))
    return Item(
        id=str(question["question_id"]),
        question=question["question"],
        images=(row_picture(files, question, *shown),),
        answers=tuple(
            answer["answer"] if isinstance(answer, dict) else answer
            for answer in annotation["answers"]
        ),
        type=kind or annotation.get("answer_type") or "all",
    )
