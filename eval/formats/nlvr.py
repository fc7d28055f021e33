"""NLVR and NLVR2: sentences that are true or false of drawn boxes, or of two photographs.

Source: https://github.com/lil-lab/nlvr: JSON Lines with `identifier`, `sentence`, `label`, and for
NLVR the `directory` of the pictures. Rows that name their `image` are read too.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from eval.files import Files, Row
from eval.formats.options import Options, read_options
from eval.formats.vsr import STATEMENTS
from eval.items import Item, Picture


class NlvrOptions(Options):
    """version: 1 has one picture of three boxes, published in six orders, of which the first is
    taken; 2 has two photographs. split: what pictures of version 1 are called after."""

    version: Literal[1, 2] = 1
    split: str = "dev"


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the sentences, with the choices `true` and `false`, in groups of the same sentence.

    Groups are those of the official measures of consistency.

    Raises:
        UserError: a row lacks a field, or its picture is missing.
    """
    chosen = read_options(NlvrOptions, options)
    for _, row in files.rows("sentences"):
        key = row["identifier"]
        yield Item(
            id=key,
            question=row["sentence"],
            images=_pictures(files, row, chosen),
            choices=STATEMENTS,
            correct=(STATEMENTS.index(str(row["label"]).lower()),),
            group=_group(key, chosen),
        )


def _pictures(files: Files, row: Row, options: NlvrOptions) -> tuple[Picture, ...]:
    key = row["identifier"]
    if options.version == 2:
        pair = key.rpartition("-")[0]
        return tuple(files.picture(f"{pair}-img{side}.png") for side in (0, 1))
    return (files.picture(row.get("image") or f"{options.split}-{key}-0.png"),)


def _group(key: str, options: NlvrOptions) -> str:
    parts = key.split("-")
    # NLVR2's pictures are SPLIT-SET-PAIR-SENTENCE: the pairs of a set share a sentence.
    return "-".join((*parts[:2], *parts[3:])) if options.version == 2 else parts[0]
