"""Visual Spatial Reasoning: statements about where things are, true or false.

Source: https://github.com/cambridgeltl/visual-spatial-reasoning, data/splits (JSON Lines).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from eval.files import Files
from eval.formats.options import Options, read_options
from eval.items import Item

STATEMENTS = ("true", "false")


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the statements, with the choices `true` and `false`; the type is the relation.

    Raises:
        UserError: a row lacks a field, or its picture is missing.
    """
    read_options(Options, options)
    for where, row in files.rows("statements"):
        yield Item(
            id=where.rpartition(":")[2],
            question=row["caption"],
            images=(files.picture(row["image"]),),
            choices=STATEMENTS,
            correct=(0 if int(row["label"]) else 1,),
            type=row["relation"],
        )
