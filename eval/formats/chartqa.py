"""ChartQA: lists of human and of augmented questions, or the hub's tables.

Source: https://github.com/vis-nlp/ChartQA (`imgname`, `query`, `label`); its tables are
lmms-lab/ChartQA (`type`, `question`, `answer`) and HuggingFaceM4/ChartQA (`human_or_machine`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from eval.files import Files, Row
from eval.formats.options import Options, read_options
from eval.formats.pictures import cell_picture, is_table
from eval.items import Item

HUMAN, AUGMENTED = "human", "augmented"


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions; types are `human` and `augmented`, ids count each of them from 0.

    Raises:
        UserError: a row lacks a field, or its picture is missing.
    """
    read_options(Options, options)
    counts = {HUMAN: 0, AUGMENTED: 0}
    table = is_table(files, "questions")
    for where, row in files.rows("questions"):
        kind = _kind(where, row)
        picture = cell_picture(row, "image") if table else files.picture(row["imgname"])
        label = row["answer"] if "answer" in row else row["label"]
        yield Item(
            id=f"{kind}-{counts[kind]}",
            question=row["question"] if "question" in row else row["query"],
            images=(picture,),
            answers=(label,) if isinstance(label, str) else tuple(label),
            type=kind,
        )
        counts[kind] += 1


def _kind(where: str, row: Row) -> str:
    if "human_or_machine" in row:
        return AUGMENTED if row["human_or_machine"] else HUMAN
    return HUMAN if HUMAN in row.get("type", where) else AUGMENTED
