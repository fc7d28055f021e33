"""Any text: files whose probability is measured."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from eval.files import Files, read_text
from eval.formats.options import Options, read_options
from eval.items import Item
from vlm.errors import UserError


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield each file of `texts` as one text, of which the file's name is the type.

    Raises:
        UserError: a file is empty.
    """
    read_options(Options, options)
    for path in files.paths("texts"):
        name = path.relative_to(files.folder).as_posix()
        text = read_text(path)
        if not text.strip():
            raise UserError(f"{path} is empty: nothing of it can be measured")
        yield Item(id=name, question=text, type=name, facts=count_units(text))


def count_units(text: str) -> dict[str, int]:
    """The words and bytes that a text's probability is divided among, as lm-eval counts them.

    Words are what whitespace separates; whitespace at the start or end has an empty one beside it.
    """
    return {"words": len(re.split(r"\s+", text)), "bytes": len(text.encode("utf-8"))}
