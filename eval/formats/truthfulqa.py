"""TruthfulQA: questions that people often answer wrongly, with true and false answers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eval.files import Files
from eval.formats.options import Options, read_options
from eval.items import Item
from vlm.errors import UserError

SETS = ("mc1", "mc2")


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions, each with the answers of both sets once.

    `questions` is the multiple choice file (JSON, or the hub's parquet), or the CSV table, whose
    sets are its best answer among the false ones, and all its true ones among the false ones.
    `table` is the CSV beside the former: it gives questions their category as type.

    `facts` has, for `mc1` and `mc2`, the indices of the answers that are in the set, the true
    ones first; `correct` is the true one of `mc1`.

    Raises:
        UserError: a question without true or without false answers; names it.
    """
    read_options(Options, options)
    categories = {}
    if files.has("table"):
        categories = {_key(row["Question"]): row["Category"] for _, row in files.rows("table")}
    is_table = files.path("questions").suffix == ".csv"
    for number, (where, row) in enumerate(files.rows("questions")):
        question = row["Question"] if is_table else row["question"]
        sets = _table_sets(row) if is_table else {name: _targets(row, name) for name in SETS}
        kind = row["Category"] if is_table else categories.get(_key(question), "all")
        yield _item(where, str(number), question, kind, sets)


def _item(
    where: str,
    number: str,
    question: str,
    kind: str,
    sets: Mapping[str, tuple[Sequence[str], Sequence[str]]],
) -> Item:
    choices: dict[str, int] = {}
    facts: dict[str, dict[str, list[int]]] = {}
    for name, (true, false) in sets.items():
        if not true or not false:
            raise UserError(f"{where} has {len(true)} true and {len(false)} false answers ({name})")
        facts[name] = {
            "true": [choices.setdefault(text, len(choices)) for text in true],
            "false": [choices.setdefault(text, len(choices)) for text in false],
        }
    return Item(
        id=number,
        question=question.strip(),
        choices=tuple(choices),
        correct=(facts["mc1"]["true"][0],),
        type=kind,
        facts=facts,
    )


def _targets(row: Mapping[str, Any], name: str) -> tuple[list[str], list[str]]:
    """A set of the multiple choice file: {text: 1 or 0}, or the hub's two lists."""
    targets = row[f"{name}_targets"]
    if "labels" in targets and "choices" in targets:
        labelled = list(zip(targets["choices"], targets["labels"], strict=True))
    else:
        labelled = list(targets.items())
    true = [text for text, label in labelled if label == 1]
    return true, [text for text, label in labelled if label != 1]


def _table_sets(row: Mapping[str, Any]) -> dict[str, tuple[list[str], list[str]]]:
    """The sets of the table's row, as the authors' evaluation makes them."""
    true, false = _split(row["Correct Answers"]), _split(row["Incorrect Answers"])
    return {"mc1": (_split(row["Best Answer"]), false), "mc2": (true, false)}


def _split(cell: str) -> list[str]:
    """The answers of a cell, each once, ended by a full stop."""
    texts = [text.strip() for text in cell.split(";")]
    return list(dict.fromkeys(f"{text.removesuffix('.')}." for text in texts if text))


def _key(question: str) -> str:
    return " ".join(question.split())
