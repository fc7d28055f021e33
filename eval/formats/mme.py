"""MME: folders of pictures with a text file of two questions beside each, or the hub's tables.

Source: https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models (`TASK/NAME.txt`, or
`TASK/questions_answers_YN/NAME.txt` with the picture in `TASK/images`); its tables are
lmms-lab/MME. To score by, a file `TASK.txt` of its eval_tool will do.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.files import EXTENSIONS, Files, read_text
from eval.formats.options import Options, read_options
from eval.formats.pictures import cell_picture, is_table
from eval.items import Item, Picture
from eval.metrics.mme import ALL_TASKS
from vlm.errors import UserError

APART = "questions_answers_YN"


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the questions; the type is the task, and the questions of a picture are a group.

    Raises:
        UserError: a line is no question with its answer, or its picture is missing.
    """
    read_options(Options, options)
    if is_table(files, "questions"):
        counts: dict[str, int] = {}
        for _, row in files.rows("questions"):
            name = str(Path(row["question_id"]).with_suffix(""))
            counts[name] = counts.get(name, 0) + 1
            picture = cell_picture(row, "image", name)
            task = row["category"]
            yield _item(task, f"{name}#{counts[name]}", row["question"], row["answer"], picture)
        return
    for path in files.paths("questions"):
        if files.names_only and path.stem in ALL_TASKS:
            yield from _results(files, path)
            continue
        folder = path.parent.parent if path.parent.name == APART else path.parent
        picture = _picture(files, folder, path.stem)
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            question, tab, answer = line.strip().rpartition("\t")
            if not line.strip():
                continue
            if not tab or not question:
                raise UserError(f"{path}:{number} is no question, tab and answer: {line!r}")
            yield _item(folder.name, f"{picture.name}#{number}", question, answer, picture)


def _results(files: Files, path: Path) -> Iterator[Item]:
    """The questions of a task in eval_tool's form: picture, question, answer, any prediction."""
    counts: dict[str, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        cells = line.split("\t")
        if len(cells) < 3:
            raise UserError(f"{path}:{number} is no picture, question and answer: {line!r}")
        picture = files.picture(f"{path.stem}/{cells[0]}")
        counts[picture.name] = counts.get(picture.name, 0) + 1
        key = f"{picture.name}#{counts[picture.name]}"
        yield _item(path.stem, key, cells[1], cells[2], picture)


def _item(task: str, key: str, question: str, answer: str, picture: Picture) -> Item:
    return Item(
        id=key,
        question=question.strip(),
        images=(picture,),
        answers=(answer.strip(),),
        type=task,
        group=picture.name,
    )


def _picture(files: Files, task: Path, stem: str) -> Picture:
    """A picture, called TASK/STEM, whatever its format is."""
    name = f"{task.name}/{stem}"
    if files.names_only:
        return Picture(name, bytes).without_content()
    for folder in (task / "images", task):
        for extension in EXTENSIONS:
            path = folder / f"{stem}{extension}"
            if path.is_file():
                return Picture(name, path.read_bytes)
    if files.names_only:
        return files.picture(f"{task.name}/{stem}")
    if files.only_with_pictures:
        files.absent.add(name)
        return Picture(name, bytes).without_content()
    raise UserError(f"{task} has no picture {stem} in any of the formats {', '.join(EXTENSIONS)}")
