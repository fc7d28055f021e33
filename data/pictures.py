"""Encoded pictures by name, from folders and tars."""

import os
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from vlm.errors import UserError


class PictureFolder:
    """Pictures under a folder, or under its sub-folder `images`; never outside of it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def find(self, name: str) -> bytes | None:
        """The bytes of one picture, or None if it is not there."""
        root = os.path.join(os.path.abspath(self.path), "")
        for candidate in (name, os.path.join("images", name)):
            # Not `resolve`: folders of pictures are often links to another disk.
            path = os.path.normpath(os.path.join(root, candidate))
            if not path.startswith(root):
                continue
            try:
                return Path(path).read_bytes()
            except (OSError, ValueError):  # ValueError: a name that no file can have
                continue
        return None


class PictureTar:
    """Pictures in an uncompressed tar, by their path in it or, if only one has it, their name.

    Raises:
        UserError: it cannot be read, or is compressed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with tarfile.open(path, "r:") as tar:
                members = [member for member in tar if member.isreg()]
        except (tarfile.TarError, OSError) as error:
            raise UserError(
                f"{path} cannot be read as an uncompressed tar ({error}): unpack it and give the "
                "folder with --images"
            ) from error
        by_name: dict[str, list[tuple[int, int]]] = {}
        for member in members:
            place = (member.offset_data, member.size)
            by_name.setdefault(os.path.basename(member.name), []).append(place)
        self._places = {name: places[0] for name, places in by_name.items() if len(places) == 1}
        for member in members:
            self._places[os.path.normpath(member.name)] = (member.offset_data, member.size)

    def find(self, name: str) -> bytes | None:
        """The bytes of one picture, or None if it is not there."""
        for candidate in (os.path.normpath(name), os.path.basename(name)):
            if candidate in self._places:
                offset, size = self._places[candidate]
                with self.path.open("rb") as file:
                    file.seek(offset)
                    return file.read(size)
        return None


class Place(Protocol):
    """Where pictures may be. path: for messages."""

    path: Path

    def find(self, name: str) -> bytes | None: ...


class Pictures:
    """Pictures in the first of several places that has them."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = places

    def read(self, name: str) -> bytes:
        """The bytes of one picture.

        Raises:
            UserError: it is nowhere; the message begins with `missing picture: `.
        """
        for place in self.places:
            content = place.find(name)
            if content is not None:
                return content
        looked = " or ".join(str(place.path) for place in self.places)
        path = PurePosixPath(name)
        leaves = path.is_absolute() or ".." in path.parts
        hint = "; no path may leave it: give a folder above with --images" if leaves else ""
        raise UserError(f"missing picture: {name} is not in {looked}{hint}")


def find_pictures(source: Path, images: Path | None) -> Pictures:
    """The pictures of a file of captions, questions or chats.

    Args:
        source: the file, or a folder of files.
        images: a folder or a tar that holds them. None looks next to the file: in the folder
            itself, then in the tar there that has the file's name (with `images` instead of
            `questions` or `captions`), or in the only tar.
    Raises:
        UserError: `images` does not exist, or the tar cannot be read.
    """
    if images is not None and not images.exists():
        raise UserError(f"--images {images} does not exist: give a folder or a .tar of pictures")
    if images is not None:
        return Pictures([PictureFolder(images) if images.is_dir() else PictureTar(images)])
    folder = source if source.is_dir() else source.parent
    tars = sorted(folder.glob("*.tar"))
    names = {source.stem.replace(word, "images") for word in ("questions", "captions")}
    same = [tar for tar in tars if tar.stem in names | {source.stem}]
    found = same or tars
    beside = [PictureTar(found[0])] if len(found) == 1 else []
    return Pictures([PictureFolder(folder), *beside])
