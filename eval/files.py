"""A benchmark's files in a folder: found, opened, and told apart from what is missing."""

import gzip
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.items import Picture
from vlm.errors import UserError

PICTURES = "images"
# Between patterns of which the first that matches anything is taken.
ALTERNATIVE = " | "
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


class Files:
    """The files that a reader asks for, by the names it uses.

    Pictures are in the folder or tar called `images`; a glob pattern may stand for several, which
    are searched in order. ` | ` stands between patterns of which the first that matches is taken.
    A file may be given in place of a folder where only one is needed.

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
    ) -> None:
        needed = [role for role in patterns if role not in optional]
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
            UserError: its pattern matches several.
        """
        paths = self.found[role]
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

    def rows(self, role: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Objects of JSON Lines, or of a JSON list, with where they stand (`file.jsonl:3`)."""
        for path in self.paths(role):
            yield from read_rows(path)

    def picture(self, name: str) -> Picture:
        """A picture by its file name, or by its path below `images`.

        Raises:
            UserError: there is none.
        """
        for names in self._pictures:
            for candidate in (name, Path(name).name):
                if candidate in names:
                    return names[candidate]
        where = ", ".join(path.name for path in self.found.get(PICTURES, [])) or "no images"
        raise UserError(f"{self.folder} has no picture {name!r}; searched: {where}")

    def has_picture(self, name: str) -> bool:
        """Whether `picture` finds it: a subset of a benchmark has some only."""
        return any(name in names or Path(name).name in names for names in self._pictures)

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


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a file of JSON Lines or of a JSON list, with where they stand.

    Raises:
        UserError: it is neither, or holds something else than objects; names the line.
    """
    text = read_text(path)
    listed = text.lstrip().startswith("[")
    try:
        rows = json.loads(text) if listed else None
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    lines = enumerate(rows if rows is not None else text.split("\n"), start=1)
    for number, line in lines:
        where = f"{path.name}:{number}"
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
    """Pictures of a folder or a tar, by path and, where it is no other's, by file name."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in EXTENSIONS)
        pictures = {
            p.relative_to(path).as_posix(): Picture(p.relative_to(path).as_posix(), p.read_bytes)
            for p in files
        }
    else:
        pictures = dict(_tar_pictures(path))
    by_name: dict[str, Picture] = {}
    for name, picture in pictures.items():
        by_name.setdefault(Path(name).name, picture)
    return {**by_name, **pictures}


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
