"""Parquet files and folders of Hugging Face `datasets`, as rows and the pictures in their cells.

Texts are read when a table is opened, pictures one by one when they are asked for. A picture of a
cell gets a name, FILE/ROW/COLUMN or, out of a list, FILE/ROW/COLUMN/INDEX, that the row holds in
its place; so a row of a table looks like a row of JSONL.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from data.documents import Document, Row
from data.pictures import Place
from vlm.errors import UserError

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".parquet", ".arrow")
# train-00000-of-00007.parquet, train-00000-of-00001-0a1b2c3d4e5f.parquet, or train.parquet
_SPLIT_FILE = re.compile(r"(.+?)-\d+-of-\d+(-[0-9a-f]+)?|(train|validation|val|dev|test)")


class TableFile(NamedTuple):
    """One file of a table. name: its path below the source, without suffix."""

    path: Path
    name: str
    split: str | None


class PictureTable:
    """Pictures in the cells of tables; of a cell that holds a path only, in other places."""

    def __init__(self, path: Path, files: list[TableFile], elsewhere: Sequence[Place]) -> None:
        self.path = path
        self.elsewhere = elsewhere
        self._listed = files
        self._files = {file.name: file.path for file in files}
        # What was opened belongs to this object: a file of the same path may be another later.
        self._arrow_table = lru_cache(maxsize=64)(_arrow_table)
        self._row_groups = lru_cache(maxsize=64)(_row_groups)
        # Rows are asked for in their order, so the group read last is the one that is needed.
        self._parquet_column = lru_cache(maxsize=2)(_parquet_column)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the files itself."""
        return PictureTable, (self.path, self._listed, self.elsewhere)

    def find(self, name: str) -> bytes | None:
        """The bytes of one picture, or None if it is not there.

        Raises:
            UserError: the file cannot be read any more.
        """
        pieces = re.fullmatch(r"(.+)/(\d+)/([^/]+?)(?:/(\d+))?", name)
        if pieces is None or pieces[1] not in self._files:
            return None
        file, row, column, index = pieces.groups()
        try:
            cell = self._cell(self._files[file], int(row), column)
        except _arrow_errors() as error:
            raise UserError(f"bad table: {self._files[file]}: {error}") from error
        if index is not None:
            cell = cell[int(index)]
        if isinstance(cell, dict):
            content: bytes | None = cell["bytes"]
            if content is None and cell["path"]:
                found = (place.find(cell["path"]) for place in self.elsewhere)
                content = next((bytes_ for bytes_ in found if bytes_ is not None), None)
            return content
        return cell if isinstance(cell, bytes) else None

    def _cell(self, path: Path, row: int, column: str) -> Any:
        if path.suffix == ".arrow":
            return self._arrow_table(path)[column][row].as_py()
        starts = self._row_groups(path)
        group = bisect_right(starts, row) - 1
        return self._parquet_column(path, group, column)[row - starts[group]].as_py()


def find_tables(source: Path) -> list[TableFile]:
    """The files of a table: `source` itself, or those of the folder; none if it is no table.

    A folder is one that `save_to_disk` of `datasets` wrote, for a data set or for several splits,
    or has parquet files in it or in its sub-folder `data`.

    Raises:
        UserError: a folder of `datasets` whose files are missing.
    """
    if source.suffix in SUFFIXES and source.is_file():
        return [TableFile(source, source.stem, _split_of(source))]
    if (source / "dataset_dict.json").is_file():
        names = json.loads((source / "dataset_dict.json").read_text("utf-8"))["splits"]
        return [file for name in names for file in _saved(source / name, source, name)]
    if (source / "state.json").is_file():
        return _saved(source, source, None)
    found = sorted(source.glob("*.parquet")) or sorted(source.glob("data/*.parquet"))
    return [_table_file(path, source, _split_of(path)) for path in found]


def read_tables(source: Path, files: list[TableFile]) -> Document:
    """The rows of tables, names in place of pictures; each row has its file's `split`, if known.

    Raises:
        UserError: pyarrow is missing, or a file is damaged.
    """
    rows = []
    for file in files:
        try:
            columns = _columns(file)
        except _arrow_errors() as error:
            raise UserError(f"{file.path} cannot be read as a table: {error}") from error
        split = {} if file.split is None else {"split": file.split}
        cells = zip(*columns.values(), strict=True)
        rows += [
            Row(f"{file.name}:{index}", {**split, **dict(zip(columns, row, strict=True))})
            for index, row in enumerate(cells)
        ]
    return Document(source, rows, {}, [])


def _saved(folder: Path, root: Path, split: str | None) -> list[TableFile]:
    try:
        state = json.loads((folder / "state.json").read_text("utf-8"))
        paths = [folder / file["filename"] for file in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is no whole folder of `datasets`: {error}") from error
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} is missing; {folder / 'state.json'} lists it")
    return [_table_file(path, root, split or state.get("_split")) for path in paths]


def _table_file(path: Path, root: Path, split: str | None) -> TableFile:
    return TableFile(path, path.relative_to(root).with_suffix("").as_posix(), split)


def _split_of(path: Path) -> str | None:
    match = _SPLIT_FILE.fullmatch(path.stem)
    return (match[1] or match[3]) if match else None


def _columns(file: TableFile) -> dict[str, list[Any]]:
    pa = _pyarrow()
    if file.path.suffix == ".arrow":
        table = _arrow_table(file.path)
    else:
        from pyarrow import parquet

        with parquet.ParquetFile(file.path) as opened:
            schema = opened.schema_arrow
            pictures = {field.name for field in schema if _holds_pictures(field.type)}
            leaves = [opened.schema.column(i).path for i in range(len(opened.schema))]
            # The bytes of pictures are most of a file: they are not read here.
            wanted = [
                leaf
                for leaf in leaves
                if not (leaf.split(".")[0] in pictures and leaf.endswith(".bytes"))
            ]
            table = opened.read(columns=wanted)
    columns: dict[str, list[Any]] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        # A picture's type may have lost its bytes above, so the name tells as well.
        is_picture = _holds_pictures(column.type) or (
            file.path.suffix == ".parquet" and name in pictures
        )
        columns[name] = (
            _names(column, f"{file.name}/{{}}/{name}", pa) if is_picture else (column.to_pylist())
        )
    return columns


def _names(column: "pyarrow.ChunkedArray", form: str, pa: Any) -> list[Any]:
    """A name for each picture of a column; None where there is none."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        counts = pa.compute.list_value_length(column).to_pylist()
        return [
            [f"{form.format(row)}/{index}" for index in range(count or 0)]
            for row, count in enumerate(counts)
        ]
    valid = column.is_valid().to_pylist()
    return [form.format(row) if there else None for row, there in enumerate(valid)]


def _holds_pictures(kind: Any) -> bool:
    types = _pyarrow().types
    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    if types.is_binary(kind) or types.is_large_binary(kind):
        return True
    return types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def _arrow_table(path: Path) -> "pyarrow.Table":
    pa = _pyarrow()
    # Mapped: only the pages that are used are read.
    mapped = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(mapped).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_file(mapped).read_all()


def _row_groups(path: Path) -> list[int]:
    """The first row of each row group."""
    from pyarrow import parquet

    metadata = parquet.read_metadata(path)
    counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    return [0, *accumulate(counts)][:-1]


def _parquet_column(path: Path, group: int, column: str) -> "pyarrow.ChunkedArray":
    from pyarrow import parquet

    with parquet.ParquetFile(path) as opened:
        return opened.read_row_group(group, columns=[column], use_threads=False)[column]


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.ipc
    except ImportError as error:
        raise UserError(
            "parquet and `datasets` folders need pyarrow: install the extra, "
            "`pip install 'vlm[parquet]'` or `uv sync --extra parquet`"
        ) from error
    return pyarrow


def _arrow_errors() -> tuple[type[Exception], ...]:
    return (_pyarrow().ArrowException, OSError)
