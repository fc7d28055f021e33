"""Uploaded pictures, read within the limits; and what the page is told when that fails."""

import html
import re
from collections.abc import Mapping
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


def picture_input(height_px: int, name: str) -> gr.Image:
    """A place for a picture: chosen, dropped, pasted, or taken with a webcam."""
    return gr.Image(
        label="Picture",
        type="filepath",
        image_mode=None,
        sources=["upload", "clipboard", "webcam"],
        height=height_px,
        buttons=[],
        elem_id=name,
    )


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


def tell(mistake: UserError) -> None:
    """Show a user's mistake in the page, until it is closed; what is there stays."""
    gr.Warning(html.escape(str(mistake)), duration=None, title="Not done")
