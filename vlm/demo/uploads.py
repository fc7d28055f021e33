"""Uploaded pictures, read within the limits; and what the page is told when that fails."""

import html
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from vlm.demo.config import DemoConfig
from vlm.errors import UserError
from vlm.images import read_image

# A file as the browser names it: an uploaded one, by gradio's FileData.
FileData = Mapping[str, Any]
# What decoders may put into a message and nobody can use: addresses, objects.
INTERNALS = re.compile(r"0x[0-9a-fA-F]{4,}|<[^>]*>")


def read_upload(file: FileData, config: DemoConfig) -> Image.Image:
    """Read an uploaded picture as RGB, upright.

    Raises:
        UserError: too large, or not a picture; the message has the picture's name and no path.
    """
    name = upload_name(file)
    try:
        return read_image(Path(file["path"]).read_bytes(), config.max_pixels)
    except FileNotFoundError:
        raise UserError(f"{name} is no longer kept here: upload it again") from None
    except UserError as error:
        raise UserError(f"{name}: {INTERNALS.sub('...', str(error))}") from error


def upload_name(file: FileData) -> str:
    """What the file was called where it came from; a photograph of a webcam has no name."""
    return str(file.get("orig_name") or Path(file["path"]).name)


@contextmanager
def shown_errors() -> Iterator[None]:
    """Show a user's mistakes in the page; anything else is a bug of ours and stays in the log.

    Raises:
        gr.Error: in place of a UserError.
    """
    try:
        yield
    except UserError as error:
        message = html.escape(str(error))
        raise gr.Error(message, duration=None, title="Not done", print_exception=False) from error
