"""easy-VQA: a list of `[question, answer, number of the picture]`.

Source: https://github.com/vzhou842/easy-VQA
"""

from collections.abc import Iterator, Mapping
from typing import Any

from data.readers import easy_vqa_type
from eval.files import Files
from eval.formats.options import Options, read_options
from eval.items import Item
from vlm.errors import UserError


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions; ids are the places in the list, types what a question asks for.

    Raises:
        UserError: a row is of another form, or its picture is missing.
    """
    read_options(Options, options)
    name = files.path("questions").name
    for number, row in enumerate(files.json("questions")):
        match row:
            case [str(question), str(answer), int(picture)]:
                yield Item(
                    id=str(number),
                    question=question,
                    images=(files.picture(f"{picture}.png"),),
                    answers=(answer,),
                    type=easy_vqa_type(question),
                )
            case _:
                raise UserError(
                    f"{name} row {number} is {row!r}, needed: [question, answer, picture]"
                )
