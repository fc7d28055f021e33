"""Predictions that were made elsewhere, in the formats in which they are published.

docs/predictions.md lists the formats. A prediction is read into `Given` first; eval/matching.py
finds the item that each belongs to.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.files import read_text
from eval.items import LETTERS
from eval.predictions import FORMAT, Prediction, read_predictions
from vlm.errors import UserError

# The first of these that a row has.
ID_FIELDS = ("question_id", "questionId", "qid", "id", "index", "task_id", "image_id")
ANSWER_FIELDS = (
    "prediction", "pred_answer", "pred", "response", "model_answer", "text", "caption", "answer",
    "completion", "grade", "score", "choices",
)  # fmt: skip
QUESTION_FIELDS = ("prompt", "question")
PICTURE_FIELDS = ("image", "image_id", "file_name")
# Where a JSON object holds its predictions under a name, beside other facts.
CONTAINERS = ("results", "predictions", "data", "annotations")
SUFFIXES = (".json", ".jsonl", ".tsv", ".csv", ".txt", ".xlsx")


@dataclass(frozen=True)
class Given:
    """A prediction as a file has it.

    where: file and line, for errors.
    id: None if the file names none, as POPE's.
    text: what was written; a choice's letter where the file gives its number.
    further: of grades, those of further runs; answers to an item's follow-ups.
    id_field: what the id is called there; `image_id` is a picture's.
    question, picture: that it answers, where the row says so.
    part: the file's name without extension, the folder's, or what stands before the slash of an id:
        MME's task, POPE's setting.
    logprobs, num_tokens: of choices, in predictions of ours.
    """

    where: str
    id: str | None
    text: str
    further: tuple[str, ...] = ()
    id_field: str = ""
    question: str | None = None
    picture: str | None = None
    part: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    num_tokens: tuple[int, ...] = ()

    def prediction(self, item_id: str) -> Prediction:
        """The same as a prediction of ours."""
        return Prediction(
            id=item_id,
            text=self.text,
            follow_ups=self.further,
            logprobs=self.logprobs,
            num_tokens=self.num_tokens,
        )


@dataclass(frozen=True)
class Fields:
    """What the fields of a row are called, where they are not called as usual."""

    id: str | None = None
    answer: str | None = None


def read_given(path: Path, fields: Fields | None = None) -> list[Given]:
    """Read a file of predictions, or all of those in a folder.

    Raises:
        UserError: nothing is there, or it is of no known format; names the line.
    """
    named = fields or Fields()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if _suffix(p) in SUFFIXES)
        given = [row for file in files for row in _read_file(file, named)]
    elif path.is_file():
        given = list(_read_file(path, named))
    else:
        raise UserError(f"{path} is no file and no folder of predictions")
    if not given:
        raise UserError(f"{path} holds no predictions; formats: {', '.join(SUFFIXES)}")
    return given


def _read_file(path: Path, fields: Fields) -> Iterator[Given]:
    suffix = _suffix(path)
    if suffix == ".txt":
        yield from _mme_lines(path)
        return
    if suffix == ".jsonl" and FORMAT in read_text(path).partition("\n")[0]:
        yield from _own_rows(path)
        return
    if suffix in (".json", ".jsonl"):
        rows = _json_rows(path)
    elif suffix in (".tsv", ".csv"):
        rows = _table_rows(path, "\t" if suffix == ".tsv" else ",")
    elif suffix == ".xlsx":
        rows = _sheet_rows(path)
    else:
        raise UserError(f"{path} is of no known format; those are {', '.join(SUFFIXES)}")
    part = (path.name.split(".")[0], path.parent.name)
    for where, row in rows:
        yield _read_row(where, row, fields, part)


def _suffix(path: Path) -> str:
    return path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a JSON list, of an object by id, or of JSON Lines, whatever the file's extension."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except ValueError:
        yield from _json_lines(path, text)
        return
    numbers_are_choices = False
    if isinstance(content, dict):
        held = [n for n in CONTAINERS if isinstance(content.get(n), list | dict)]
        if held:
            content, numbers_are_choices = content[held[0]], held[0] == "results"
    if isinstance(content, dict) and not any(name in content for name in ANSWER_FIELDS):
        for key, value in content.items():
            where = f"{path.name}, {key!r}"
            yield where, _value_row(where, key, value, numbers_are_choices)
        return
    for number, row in enumerate(content if isinstance(content, list) else [content], start=1):
        yield _checked(f"{path.name}:{number}", row)


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is no JSON: {error}") from error
        yield _checked(where, row)


def _checked(where: str, row: Any) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(row, dict):
        raise UserError(f"{where} is a {type(row).__name__}, needed: an object")
    return where, row


def _value_row(where: str, key: str, value: Any, numbers_are_choices: bool) -> Mapping[str, Any]:
    """A row of what stands under an id: a text, a choice's number, or a row without id."""
    if isinstance(value, dict):
        return {"id": key, **value}
    if numbers_are_choices and isinstance(value, int):
        if value >= len(LETTERS):
            raise UserError(f"{where} is {value}, needed: the number of a choice")
        # ScienceQA has -1 where no choice could be read.
        value = LETTERS[value] if value >= 0 else ""
    return {"id": key, "prediction": value}


def _table_rows(path: Path, delimiter: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # A table of MMBench has pictures in its cells.
    csv.field_size_limit(2**31 - 1)
    table = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    for row in table:
        yield f"{path.name}:{table.line_num}", row


def _sheet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of the first sheet of an Excel file, as VLMEvalKit writes predictions."""
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        raise UserError(f"{path} needs openpyxl to be read: install vlm's extra `eval`") from error
    book = load_workbook(path, read_only=True, data_only=True)
    rows = book.worksheets[0].iter_rows(values_only=True)
    header = [str(name) for name in next(rows, ())]
    for number, cells in enumerate(rows, start=2):
        yield f"{path.name}:{number}", dict(zip(header, cells, strict=False))
    book.close()


def _own_rows(path: Path) -> Iterator[Given]:
    """The predictions file of `vlm eval`."""
    for number, row in enumerate(read_predictions(path)[1], start=2):
        yield Given(
            where=f"{path.name}:{number}",
            id=row.id,
            text=row.text,
            further=row.follow_ups,
            logprobs=row.logprobs,
            num_tokens=row.num_tokens,
        )


def _mme_lines(path: Path) -> Iterator[Given]:
    """MME's results: picture, question, right answer and prediction, parted by tabs."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        cells = line.rstrip("\r").split("\t")
        if len(cells) != 4:
            raise UserError(
                f"{path.name}:{number} has {len(cells)} cells, needed: picture, question, right "
                "answer, prediction"
            )
        picture, question, _, text = cells
        yield Given(
            f"{path.name}:{number}",
            None,
            text,
            (),
            "",
            question,
            picture,
            (path.name.split(".")[0],),
        )


def _read_row(where: str, row: Mapping[str, Any], fields: Fields, part: tuple[str, ...]) -> Given:
    id_field = _field(row, ID_FIELDS, fields.id)
    answer_field = _field(row, ANSWER_FIELDS, fields.answer)
    if answer_field is None:
        raise UserError(
            f"{where} has no prediction; it has {', '.join(row) or 'nothing'}, known are "
            f"{', '.join(ANSWER_FIELDS)}"
        )
    texts = _texts(where, row[answer_field])
    item_id = None if id_field is None else plain_id(row[id_field])
    if item_id is not None and row.get("round_id"):
        # LLaVA asks MMBench's questions in rounds, each with the choices rotated once more.
        item_id = f"{item_id}+{row['round_id']}"
    question = _field(row, QUESTION_FIELDS, None)
    picture = _field(row, PICTURE_FIELDS, None)
    named = plain_id(row[picture]) if picture else None
    if item_id is not None and "/" in item_id:
        part = (*item_id.split("/")[:-1], *part)
        named = named or item_id
    return Given(
        where=where,
        id=item_id,
        text=texts[0],
        further=texts[1:],
        id_field=id_field or "",
        question=str(row[question]) if question and row[question] else None,
        picture=named,
        part=tuple(str(name) for name in (*_types(row), *part)),
    )


def _types(row: Mapping[str, Any]) -> list[str]:
    return [row[name] for name in ("category", "setting", "type") if isinstance(row.get(name), str)]


def _field(row: Mapping[str, Any], known: tuple[str, ...], named: str | None) -> str | None:
    names = known if named is None else (named,)
    return next((name for name in names if name in row), None)


def _texts(where: str, value: Any) -> tuple[str, ...]:
    """A prediction's text; of a list, all of them; of FastChat's choices, the first one's turns."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and "turns" in value[0]:
        value = value[0]["turns"]
    if isinstance(value, list) and value and not any(isinstance(v, list | dict) for v in value):
        return tuple(_text(each) for each in value)
    if isinstance(value, list | dict):
        raise UserError(f"{where} has a {type(value).__name__} as its prediction, needed: a text")
    return (_text(value),)


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""  # an empty cell: nothing was said
    return str(value)


def plain_id(value: Any) -> str:
    """An id as text; tables make 17.0 of the number 17."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()
