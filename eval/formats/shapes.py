"""SHAPES: yes/no questions about grids of coloured shapes of 30 x 30 px.

Source: https://github.com/ronghanghu/n2nmn, exp_shapes/shapes_dataset (`NAME.query_str.txt`,
`NAME.output`, `NAME.input.npy`); JSON Lines (`index`, `question`, `answer`) with an .npz that has
the pictures as `images` are read too.
"""

import io
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from eval.files import Files, Row
from eval.formats.options import Options, read_options
from eval.items import Item, Picture
from vlm.errors import UserError


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions, with the answer `yes` or `no`.

    Raises:
        UserError: there are not as many pictures, questions and answers.
    """
    read_options(Options, options)
    rows = list(_rows(files))
    pictures = _pictures(files)
    for number, row in enumerate(rows):
        index = int(row.get("index", number))
        if index >= len(pictures):
            raise UserError(f"{row.where} shows picture {index}, and there are {len(pictures)}")
        yield Item(
            id=str(number),
            question=row["question"],
            images=(Picture(f"{index}.png", partial(_encode, pictures[index])),),
            answers=("yes" if row["answer"] == "true" else "no",),
        )


def _rows(files: Files) -> Iterator[Row]:
    if not files.has("answers"):
        yield from (row for _, row in files.rows("questions"))
        return
    name = files.path("questions").name
    questions = files.text("questions").split("\n")
    answers = files.text("answers").split("\n")
    pairs = [(q.strip(), a.strip()) for q, a in zip(questions, answers, strict=False) if q.strip()]
    if any(not answer for _, answer in pairs):
        raise UserError(f"{name} has more questions than {files.path('answers').name} answers")
    for number, (question, answer) in enumerate(pairs):
        yield Row(f"{name}:{number + 1}", {"question": question, "answer": answer})


def _pictures(files: Files) -> NDArray[np.uint8]:
    """(n, height, width, 3) uint8."""
    path = files.path("pictures")
    try:
        content = np.load(path, allow_pickle=False)
        found: NDArray[np.uint8] = content["images"] if path.suffix == ".npz" else content
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if found.ndim != 4 or found.shape[-1] != 3 or found.dtype != np.uint8:
        raise UserError(
            f"{path} holds {found.dtype} of shape {found.shape}, needed: uint8 (n, h, w, 3)"
        )
    return found


def _encode(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
