"""MM-Vet: an object of questions by id, each with the capabilities that it needs.

Source: https://github.com/yuweihao/MM-Vet, mm-vet.json (`imagename`, `question`, `answer`,
`capability`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from eval.files import Files, Row
from eval.formats.options import Options, read_options
from eval.items import Item


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions; the type is the capabilities that one needs, as `math + ocr`.

    Raises:
        UserError: a row lacks a field, or its picture is missing.
    """
    read_options(Options, options)
    name = files.path("questions").name
    for key, values in files.json("questions").items():
        row = Row(f"{name} question {key}", values)
        yield Item(
            id=key,
            question=row["question"],
            images=(files.picture(row["imagename"]),),
            answers=(row["answer"],),
            type=" + ".join(sorted(row["capability"])),
            facts={"capability": tuple(row["capability"])},
        )
