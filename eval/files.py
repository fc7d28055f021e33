"""A benchmark's files in a folder: found, opened, and told apart from what is missing."""

import csv
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from eval.items import Picture
from vlm.errors import UserError

PICTURES = "images"
# Between patterns of which the first that matches anything is taken.
ALTERNATIVE = " | "
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


class Row(dict[str, Any]):
    """An object of a file; one that lacks a field says where it stands.

    where: `file.jsonl:3`.
    """

    def __init__(self, where: str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.where = where

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.where} has no {key!r}; it has {', '.join(self) or 'nothing'}")


class Files:
    """The files that a reader asks for, by the names it uses.

    Pictures are in the folder, tar or zip called `images`; a glob pattern may stand for several,
    which are searched in order. ` | ` stands between patterns of which the first that matches is
    taken.
    A file may be given in place of a folder where only one is needed.

    only_with_pictures: a picture that is not there is no error: `absent` has its name then, and
        what shows it is to be left out.
    names_only: pictures need not be there and are not read; scoring only needs their names.

    Raises:
        UserError: a pattern of a file that is needed matches nothing.
    """

    def __init__(
        self,
        folder: Path,
        patterns: Mapping[str, str],
        optional: Sequence[str] = (),
        get: str = "",
        name: str = "the benchmark",
        only_with_pictures: bool = False,
        names_only: bool = False,
    ) -> None:
        self.patterns = patterns
        self.only_with_pictures = only_with_pictures
        self.names_only = names_only
        self.absent: set[str] = set()
        unneeded = {*optional, PICTURES} if names_only else set(optional)
        needed = [role for role in patterns if role not in unneeded]
        if folder.is_file() and len(needed) == 1:
            self.folder = folder.parent
            self.found = {role: [folder] if role in needed else [] for role in patterns}
            return
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; {name} needs its files there. {get}")
        self.folder = folder
        self.found = {role: _find(folder, pattern) for role, pattern in patterns.items()}
        missing = [role for role in needed if not self.found[role]]
        if missing:
            wanted = ", ".join(f"{patterns[role]} ({role})" for role in missing)
            raise UserError(f"{folder} has no {wanted}, which {name} needs. {get}")

    def has(self, role: str) -> bool:
        """Whether a file that need not be there is."""
        return bool(self.found.get(role))

    def path(self, role: str) -> Path:
        """The only file of that name.

        Raises:
            UserError: its pattern matches none, or several.
        """
        paths = self.found[role]
        if not paths:
            raise UserError(f"{self.folder} has no {self.patterns[role]} ({role})")
        if len(paths) != 1:
            listed = ", ".join(path.name for path in paths[:3])
            raise UserError(f"{self.folder} has {len(paths)} files for {role!r}: {listed}, ...")
        return paths[0]

    def paths(self, role: str) -> list[Path]:
        """All files of that name, sorted."""
        return self.found[role]

    def text(self, role: str) -> str:
        """The text of the only file of that name; `.gz` is unpacked."""
        return read_text(self.path(role))

    def json(self, role: str) -> Any:
        """What the only file of that name holds as JSON."""
        path = self.path(role)
        try:
            return json.loads(read_text(path))
        except ValueError as error:
            raise UserError(f"{path} is no JSON: {error}") from error

    def rows(self, role: str) -> Iterator[tuple[str, Row]]:
        """Rows of JSON Lines, a JSON list, CSV, TSV or parquet, with where they stand.

        A cell of parquet that holds a picture gives a `Picture`.
        """
        for path in self.paths(role):
            yield from read_rows(path, path.relative_to(self.folder).as_posix())

    def texts(self, role: str) -> Iterator[tuple[str, str]]:
        """The files of that name as (file name, text); a tar gives those that it holds."""
        for path in self.paths(role):
            if ".tar" in path.suffixes or path.suffix == ".tgz":
                yield from _tar_texts(path)
            else:
                yield path.name, read_text(path)

    def picture(self, *names: str, by_path: bool = False) -> Picture:
        """A picture by its file name, or by the end of its path; the first name that is there.

        Args:
            by_path: never by the file name alone: many pictures are called `image.png`.
        Raises:
            UserError: there is none, or several end so.
        """
        if self.names_only:
            return Picture(names[0], bytes).without_content()
        for name in names:
            for pictures in self._pictures:
                for candidate in (name,) if by_path else (name, Path(name).name):
                    if candidate in pictures:
                        return pictures[candidate]
        if self.only_with_pictures:
            self.absent.add(names[0])
            return Picture(names[0], bytes).without_content()
        where = ", ".join(path.name for path in self.found.get(PICTURES, [])) or "no images"
        raise UserError(
            f"{self.folder} has no picture {' or '.join(map(repr, names))}; searched: {where}. "
            "Set only_with_pictures to true to leave out what has none"
        )

    @cached_property
    def _pictures(self) -> list[dict[str, Picture]]:
        return [_list_pictures(path) for path in self.found.get(PICTURES, [])]


def read_text(path: Path) -> str:
    """A file's text in UTF-8, unpacked if its name ends in `.gz`."""
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_rows(path: Path, name: str | None = None) -> Iterator[tuple[str, Row]]:
    """Rows of JSON Lines, a JSON list, CSV, TSV or parquet, with where they stand.

    Args:
        name: what the file is called there; None is its file name.
    Raises:
        UserError: it is none of these, or holds something else than objects; names the line.
    """
    name = name or path.name
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if suffix == ".parquet":
        from eval.parquet import read_parquet  # needs an extra

        rows = read_parquet(path, name)
    elif suffix in (".csv", ".tsv"):
        table = csv.DictReader(
            io.StringIO(read_text(path), newline=""), delimiter="\t" if suffix == ".tsv" else ","
        )
        rows = ((f"{name}:{table.line_num}", row) for row in table)
    else:
        rows = _json_rows(path, name)
    for where, row in rows:
        yield where, Row(where, row)


def _json_rows(path: Path, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    text = read_text(path)
    listed = text.lstrip().startswith("[")
    try:
        rows = json.loads(text) if listed else None
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    lines = enumerate(rows if rows is not None else text.split("\n"), start=1)
    for number, line in lines:
        where = f"{name}:{number}"
        if not listed and not line.strip():
            continue
        try:
            row = line if listed else json.loads(line)
        except ValueError as error:
            raise UserError(f"{where} is no JSON: {error}") from error
        if not isinstance(row, dict):
            raise UserError(f"{where} is a {type(row).__name__}, needed: an object")
        yield where, row


def _find(folder: Path, pattern: str) -> list[Path]:
    """The files of the first alternative of a pattern that has any."""
    matches = (sorted(folder.glob(part)) for part in pattern.split(ALTERNATIVE))
    return next((paths for paths in matches if paths), [])


def _list_pictures(path: Path) -> dict[str, Picture]:
    """Pictures of a folder, tar or zip, by path and, where no other ends so, by the end of it."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS)
        pictures = {
            p.relative_to(path).as_posix(): Picture(p.relative_to(path).as_posix(), p.read_bytes)
            for p in files
        }
    elif path.suffix == ".zip":
        pictures = _zip_pictures(path)
    else:
        pictures = dict(_tar_pictures(path))
    by_end: dict[str, Picture | None] = {}
    for name, picture in pictures.items():
        end = name
        while "/" in end:
            _, _, end = end.partition("/")
            by_end[end] = None if end in by_end else picture
    return {**{end: found for end, found in by_end.items() if found is not None}, **pictures}


def _tar_texts(path: Path) -> Iterator[tuple[str, str]]:
    try:
        with tarfile.open(path) as tar:
            for member in sorted(tar.getmembers(), key=lambda member: member.name):
                file = tar.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield Path(member.name).name, file.read().decode("utf-8-sig")
    except (OSError, tarfile.TarError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _zip_pictures(path: Path) -> dict[str, Picture]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    names = (name for name in archive.namelist() if Path(name).suffix.lower() in EXTENSIONS)
    return {name: Picture(name, partial(archive.read, name)) for name in names}


def _tar_pictures(path: Path) -> Iterator[tuple[str, Picture]]:
    """Pictures in a tar; of one that is not compressed, they are read from their places."""
    try:
        with tarfile.open(path) as tar:
            compressed = path.suffix != ".tar"
            for member in tar:
                if not member.isfile() or Path(member.name).suffix.lower() not in EXTENSIONS:
                    continue
                name = member.name.removeprefix("./")
                if compressed:
                    file = tar.extractfile(member)
                    assert file is not None
                    content = file.read()
                    yield name, Picture(name, lambda content=content: content)  # type: ignore[misc]
                else:
                    place = (path, member.offset_data, member.size)
                    yield name, Picture(name, lambda place=place: _read_part(*place))  # type: ignore[misc]
    except (OSError, tarfile.TarError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def _read_part(path: Path, start: int, num_bytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(num_bytes)
