"""Pictures on an HTML page that holds them itself, made small."""

import base64
import io
from html import escape

from PIL import Image

from vlm.images import ImageError, read_image

THUMBNAIL_PX = 320
# Pictures up to this size are shown pixel by pixel, enlarged.
SMALL_PX = 160


def picture_figure(content: bytes) -> str:
    """The picture of a file with its size, or why it cannot be read, as a figure."""
    try:
        image = read_image(content)
    except ImageError as error:
        return f"<figure class=bad>{escape(str(error))}</figure>"
    width_px, height_px = image.size
    size = f"{width_px} &times; {height_px} px, {len(content) / 1000:.1f} kB"
    style = " class=pixels" if max(image.size) <= SMALL_PX else ""
    return (
        f'<figure><img{style} src="{_data_uri(image)}" alt="" loading=lazy>'
        f"<figcaption>{size}</figcaption></figure>"
    )


def _data_uri(image: Image.Image) -> str:
    # Small pictures are often drawn: PNG keeps their edges, and is smaller there.
    kind = "png" if max(image.size) <= SMALL_PX else "jpeg"
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# CSS of cards that begin with their pictures, on a page of `data.page`.
STYLE = """
article { break-inside: avoid; margin: 0 0 1rem; border: 1px solid var(--line);
  border-radius: 10px; background: var(--card); overflow: hidden; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(110px, 1fr));
  gap: 1px; background: var(--line); }
.pictures figure { margin: 0; background: var(--card); text-align: center; }
figure.bad { padding: 1rem; color: var(--wrong); }
.pictures img { display: block; margin: 0 auto; width: 100%; max-height: 320px;
  object-fit: contain; }
.pictures img.pixels { width: 160px; max-width: 100%; image-rendering: pixelated; padding: 8px 0; }
.pictures figcaption { padding: 3px; color: var(--quiet); font-size: 11.5px; }
"""
