"""Captions of many picture files: in batches, printed or written to a file."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from vlm.api import CAPTION_PROMPT, Model
from vlm.caption_file import CaptionFile
from vlm.errors import UserError
from vlm.images import EXTENSIONS, MAX_PIXELS, ImageError, read_image
from vlm.messages import question_chat
from vlm.safety.policy import ContentPolicyError

BATCH_IMAGES = 32
PICTURE_SUFFIXES = frozenset(f".{extension}" for extension in EXTENSIONS.values()) | {
    ".jpeg",
    ".tiff",
}


@dataclass(frozen=True)
class Captioned:
    """What became of a picture file: its caption, in one line, or why it has none."""

    path: Path
    caption: str | None
    problem: str | None = None


def picture_files(folder: Path) -> list[Path]:
    """The picture files of a folder and of those in it, by their names' endings, sorted.

    Hidden ones are left out.

    Raises:
        UserError: there is none.
    """
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in PICTURE_SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    if not found:
        endings = ", ".join(sorted(PICTURE_SUFFIXES))
        raise UserError(f"{folder} has no picture files; needed are files that end in {endings}")
    return found


def caption_files(
    model: Model, paths: Sequence[Path], max_pixels: int = MAX_PIXELS, **settings: Any
) -> Iterator[list[Captioned]]:
    """Describe picture files; yields them in their order, `BATCH_IMAGES` at a time.

    One that the model's content policy refuses is told as one that cannot be read.

    Args:
        max_pixels: larger pictures are not read.
        settings: see `vlm.replies.AnswerConfig`.
    """
    for start in range(0, len(paths), BATCH_IMAGES):
        batch = paths[start : start + BATCH_IMAGES]
        read = [_read(path, max_pixels) for path in batch]
        pictures = [picture for picture in read if isinstance(picture, Image.Image)]
        captions = iter(_captions(model, pictures, settings))
        made = [next(captions) if isinstance(one, Image.Image) else one for one in read]
        yield [
            Captioned(path, one)
            if isinstance(one, str)
            else Captioned(path, None, _named(one, path))
            for path, one in zip(batch, made, strict=True)
        ]


def _captions(
    model: Model, pictures: Sequence[Image.Image], settings: Mapping[str, Any]
) -> list[str | UserError]:
    """Captions in one line, or why a content policy lets one have none."""
    chats = [question_chat([picture], CAPTION_PROMPT) for picture in pictures]
    try:
        replies = model.chat_batch(chats, **settings)
    except ContentPolicyError as error:
        if len(pictures) == 1:
            return [error]
        return [one for picture in pictures for one in _captions(model, [picture], settings)]
    return [
        UserError(reply.text)
        if reply.finish_reason == "content_filter"
        else " ".join(reply.text.split())
        for reply in replies
    ]


def _named(problem: UserError, path: Path) -> str:
    return str(problem) if isinstance(problem, ImageError) else f"{path}: {problem}"


def expanded(inputs: Sequence[Path]) -> list[Path]:
    """Files as they are given, folders replaced by their pictures.

    Raises:
        UserError: a folder has none.
    """
    return [
        path for given in inputs for path in (picture_files(given) if given.is_dir() else [given])
    ]


def named_files(inputs: Sequence[Path]) -> dict[str, Path]:
    """`expanded` by the names that captions are kept under: below a folder given alone, else paths.

    Raises:
        UserError: a folder has no pictures.
    """
    alone = inputs[0] if len(inputs) == 1 and inputs[0].is_dir() else None
    paths = expanded(inputs)
    return {(path.relative_to(alone).as_posix() if alone else str(path)): path for path in paths}


def print_captions(model: Model, paths: Sequence[Path], **settings: Any) -> int:
    """Print a line `path: caption` for each picture file.

    Returns:
        how many have no caption; each is named on stderr.
    """
    num_left_out = 0
    for batch in caption_files(model, paths, **settings):
        for made in batch:
            if made.problem is None:
                print(f"{made.path}: {made.caption}", flush=True)
            else:
                print("error:", made.problem, file=sys.stderr)
                num_left_out += 1
    return num_left_out


def write_captions(
    model: Model, files: Mapping[str, Path], written: CaptionFile, **settings: Any
) -> int:
    """Write captions of those picture files, by name, that have none in the file yet.

    Pictures that cannot be read, or that a content policy refuses, are not written, so that another
    run tries them again.

    Returns:
        how many have no caption; each is named on stderr.
    Raises:
        UserError: the file cannot be written.
    """
    names = [name for name in files if name not in written.names]
    num_known, num_done, num_left_out = len(files) - len(names), 0, 0
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    if num_known:
        console.print(f"{written.path} has {num_known} of {len(files)} captions; making the others")
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("captions", total=len(files), completed=num_known)
        for batch in caption_files(model, [files[name] for name in names], **settings):
            pairs = list(zip(names[num_done:], batch, strict=False))
            num_done += len(batch)
            written.add([(name, made.caption) for name, made in pairs if made.caption is not None])
            for _, made in pairs:
                if made.problem is not None:
                    console.print(f"error: {made.problem}")
                    num_left_out += 1
            progress.advance(task, len(batch))
    left_out = f", {num_left_out} left out" if num_left_out else ""
    num_captions = len(files) - num_left_out
    console.print(f"{written.path}: {num_captions} of {len(files)} captions{left_out}")
    return num_left_out


def _read(path: Path, max_pixels: int) -> Image.Image | ImageError:
    try:
        return read_image(path, max_pixels)
    except ImageError as error:
        return error
