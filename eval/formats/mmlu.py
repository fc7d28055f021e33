"""MMLU: multiple choice about 57 subjects, a CSV file each, or one table of all of them."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

from eval.files import Files
from eval.formats.options import Options, read_options
from eval.items import LETTERS, Item
from vlm.errors import UserError

_FILE = re.compile(r"(?P<subject>.+)_(?P<split>dev|val|test)\.csv")


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions of `questions`, or of `examples` where there are any.

    CSV files are named after subject and split (`anatomy_test.csv`), in folders or in a tar; each
    row has a question, its options, and the right one as a letter or, below a header, as an index
    from 0. A parquet table has `subject`, `question`, `choices` and `answer`.

    Raises:
        UserError: a file of another form; names the row.
    """
    read_options(Options, options)
    role, split = ("examples", "dev") if files.has("examples") else ("questions", "test")
    if files.paths(role)[0].suffix == ".parquet":
        numbers: dict[str, int] = {}
        for where, row in files.rows(role):
            subject = row["subject"]
            number = numbers[subject] = numbers.get(subject, -1) + 1
            yield _item(
                where, subject, split, number, row["question"], row["choices"], str(row["answer"])
            )
        return
    found = False
    for name, text in files.texts(role):
        named = _FILE.fullmatch(name)
        if named is None or named["split"] != split:
            continue
        found = True
        yield from _subject_items(name, named["subject"], split, text)
    if not found:
        raise UserError(
            f"{files.paths(role)[0]} has no SUBJECT_{split}.csv, where {role} of MMLU would be"
        )


def _subject_items(name: str, subject: str, split: str, text: str) -> Iterator[Item]:
    rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
    # The published files have no header, copies of them have one.
    header = bool(rows) and rows[0][0] == "question" and rows[0][-1] == "answer"
    for number, row in enumerate(rows[header:]):
        where = f"{name}, question {number + 1}"
        if len(row) < 4:
            raise UserError(
                f"{where} has {len(row)} cells, needed: a question, its options and the right one"
            )
        question, *choices, answer = row
        yield _item(where, subject, split, number, question, choices, answer)


def _item(
    where: str, subject: str, split: str, number: int, question: str, choices: Any, answer: str
) -> Item:
    right = LETTERS.find(answer) if answer.isalpha() else int(answer) if answer.isdigit() else -1
    if not 0 <= right < len(choices):
        raise UserError(f"{where}: {answer!r} is none of its {len(choices)} options")
    return Item(
        id=f"{subject}/{split}/{number}",
        question=question.strip(),
        choices=tuple(str(choice) for choice in choices),
        correct=(right,),
        type=subject,
        fields={"subject": subject.replace("_", " ")},
    )
