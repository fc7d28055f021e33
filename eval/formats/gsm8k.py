"""GSM8K: grade school mathematics in words, with worked answers that end in `#### 18`."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from eval.files import Files
from eval.formats.options import Options, read_options
from eval.items import Item
from vlm.errors import UserError

MARK = "####"
# What the authors' calculator reads: "16 - 3 - 4 = <<16-3-4=9>>9".
_CALCULATION = re.compile(r"<<[^<>]*>>")


class Gsm8kOptions(Options):
    """calculations: worked answers keep what stands in `<<>>`."""

    calculations: bool = True


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the problems of `questions`, or of `examples` where there are any.

    As an example, a problem is answered by its worked answer.

    Raises:
        UserError: an answer without `####`; names the row.
    """
    keep = read_options(Gsm8kOptions, options).calculations
    role = "examples" if files.has("examples") else "questions"
    for number, (where, row) in enumerate(files.rows(role)):
        worked, mark, final = row["answer"].rpartition(MARK)
        if not mark:
            raise UserError(f"{where} has an answer without {MARK}, after which the number stands")
        steps = worked if keep else _CALCULATION.sub("", worked)
        final = final.strip().replace(",", "")
        yield Item(
            id=f"{role}/{number}",
            question=row["question"],
            answers=(final,),
            fields={"shown_answer": f"{steps}{MARK} {final}"},
        )
