"""Pictures by class: a folder for each, or the hub's tables.

Tables have a picture (`image` or `img`) and a number (`label` or `fine_label`), whose names are in
the file `names`, a line each; CIFAR-10 and CIFAR-100 are published so.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from eval.files import EXTENSIONS, Files
from eval.formats.options import Options, read_options
from eval.formats.pictures import cell_picture
from eval.items import Item, Picture
from vlm.errors import UserError


class ClassesOptions(Options):
    """label: the column of a table that has the class.

    names: the classes in the order of their numbers; where a file `names` has them, or folders
    are called after them, none.
    """

    label: str = "label"
    names: tuple[str, ...] = ()


def read(files: Files, options: Mapping[str, Any]) -> Iterator[Item]:
    """Yield the pictures, with the names of all classes as choices; the type is the class.

    Folders are classes in alphabetical order; `_` in their names is a blank.

    Raises:
        UserError: there are no classes, or a row's class has no name.
    """
    chosen = read_options(ClassesOptions, options)
    listed = _names(files, chosen)
    if files.has("pictures") and files.paths("pictures")[0].suffix == ".parquet":
        yield from _from_table(files, chosen, listed)
        return
    folders = [path for path in files.paths("pictures") if path.is_dir()]
    names = listed or tuple(path.name.replace("_", " ") for path in folders)
    if len(names) != len(folders) or not names:
        raise UserError(f"{files.folder} has {len(folders)} class folders for {len(names)} names")
    for label, folder in enumerate(folders):
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS):
            name = path.relative_to(files.folder).as_posix()
            yield _item(name, Picture(name, path.read_bytes), names, label)


def _from_table(files: Files, options: ClassesOptions, names: tuple[str, ...]) -> Iterator[Item]:
    for number, (_, row) in enumerate(files.rows("pictures")):
        column = "image" if "image" in row else "img"
        label = int(row[options.label])
        if label >= len(names):
            raise UserError(f"{row.where} is of class {label}, and there are {len(names)} names")
        yield _item(str(number), cell_picture(row, column), names, label)


def _names(files: Files, options: ClassesOptions) -> tuple[str, ...]:
    if options.names or not files.has("names"):
        return options.names
    return tuple(line.strip() for line in files.text("names").splitlines() if line.strip())


def _item(key: str, picture: Picture, names: tuple[str, ...], label: int) -> Item:
    return Item(
        id=key,
        question="",
        images=(picture,),
        choices=names,
        correct=(label,),
        type=names[label],
    )
