"""Any common picture file to 8-bit RGB, upright and opaque.

What becomes of what:

- EXIF or XMP orientation 1-8 is applied; metadata that cannot be read counts as upright. Damage
  after the last pixel is no reason to refuse a picture, missing pixels are.
- CMYK becomes RGB by Pillow's arithmetic, R = (255 - C) * (255 - K) / 255. Adobe's JPEGs store CMYK
  inverted; Pillow takes every CMYK JPEG to be one of them and turns it back itself.
- Transparency (an alpha channel, a transparent palette entry, PNG's transparent colour) is
  composited on white.
- 16-bit greyscale v becomes round(v / 257), so that 65535 is white; 32-bit integers are taken as
  16-bit values and clipped.
- Palettes, 1-bit, YCbCr and 16-bit RGB as Pillow converts them. ICC profiles are not applied.
- Animations and multi-page files give their first frame.
- Floating point pixels have no defined white and are refused.

Only the formats in `EXTENSIONS` are opened: no format whose decoder starts another program (EPS),
and none that nests another file whose size its own header does not tell (ICO).

`read_draft` reads the same pictures for training, at a reduced scale where a JPEG is larger than
needed; its conversions are the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from vlm.errors import UserError

# Pillow's name of each format that is read, and the file extension it gets in a shard.
EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "GIF": "gif",
    "WEBP": "webp",
    "AVIF": "avif",
    "BMP": "bmp",
    "TIFF": "tif",
    "PPM": "ppm",
    "JPEG2000": "jp2",
}

# Pillow opens MPO, a JPEG that more pictures follow, through its JPEG reader.
_OPENED = [name for name in EXTENSIONS if name != "MPO"]

ORIENTATION_TAG = 0x0112
# EXIF 2.32 section 4.6.4: how the stored picture is turned to stand upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Those after which height is width.
SWAPPING = frozenset(UPRIGHT[orientation] for orientation in (5, 6, 7, 8))

MAX_PIXELS = 178_956_970  # where Pillow itself gives up: 0.5 GiB of RGB


class ImageError(UserError):
    """A picture that cannot be read; the message says why."""


@dataclass(frozen=True)
class DraftImage:
    """A picture that its decoder may have shrunk, as it lies in its file.

    image: opaque, 8-bit RGB, for its pixels only: it may still carry the file's metadata.
    extent_px: (height, width) of what the picture fills of `image`, from the top left on: where a
        side is no multiple of the scale, the last pixels reach beyond it.
    full_size_px: (height, width) of the picture, upright.
    turn: what makes it upright, unless it lies so.
    """

    image: Image.Image
    extent_px: tuple[float, float]
    full_size_px: tuple[int, int]
    turn: Image.Transpose | None


def read_image(
    source: str | Path | bytes | Image.Image, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Read a picture as upright, opaque, 8-bit RGB; see the module's head for each conversion.

    Args:
        source: a path, the encoded bytes, or a PIL image (left as it is).
        max_pixels: a larger picture is refused by the size its header tells, before decoding.
    Returns:
        a new RGB image without metadata.
    Raises:
        ImageError: missing, too large, damaged, or not a picture. Only for a path does the
            message name the path.
    """
    with _named_errors(f"{source}: " if isinstance(source, str | Path) else ""):
        if isinstance(source, Image.Image):
            return _to_rgb(source, max_pixels)
        content = source if isinstance(source, bytes) else Path(source).read_bytes()
        with _open(content) as image:
            return _to_rgb(image, max_pixels)


def read_draft(
    content: bytes,
    needed_px: Callable[[int, int], tuple[int, int]],
    max_pixels: int = MAX_PIXELS,
) -> DraftImage:
    """Read a picture at the smallest scale of its format that is large enough.

    JPEG has four, 1, 1/2, 1/4 and 1/8, which its decoder computes without the full picture;
    other formats are read in full.

    Args:
        content: the encoded bytes.
        needed_px: from the upright picture's height and width, the (height, width) in which it is
            needed at least; `DraftImage.extent_px` is that large, unless the picture is smaller.
        max_pixels: see `read_image`; the full size counts.
    Raises:
        ImageError: too large, damaged, or not a picture.
    """
    with _named_errors(""), _open(content) as image:
        _check_size(image, max_pixels)
        turn = _upright(image)
        swaps = turn in SWAPPING
        full_px = image.size if swaps else image.size[::-1]
        needed = needed_px(*full_px)
        reduced = image.draft(None, needed if swaps else needed[::-1])
        _load(image)
        extent_px = reduced[1][:1:-1] if reduced else image.size[::-1]
        return DraftImage(_convert(image), extent_px, full_px, turn)


def image_extension(content: bytes) -> str:
    """The file extension that belongs to encoded bytes, from their header: `jpg`, `png`, ...

    Raises:
        ImageError: not a picture in a format that is read.
    """
    with _named_errors(""), _open(content) as image:
        assert image.format is not None
        return EXTENSIONS[image.format]


def image_size(content: bytes) -> tuple[int, int]:
    """Width and height of the upright picture in encoded bytes, from their header.

    Raises:
        ImageError: not a picture in a format that is read.
    """
    with _named_errors(""), _open(content) as image:
        width_px, height_px = image.size
        lies = _upright(image) in [UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]
        return (height_px, width_px) if lies else (width_px, height_px)


def _open(content: bytes) -> Image.Image:
    return Image.open(BytesIO(content), formats=_OPENED)


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    # Given damaged bytes, decoders raise nearly anything: SyntaxError, struct.error, KeyError.
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name}{error}") from None
    except UnidentifiedImageError as error:
        formats = ", ".join(_OPENED)
        raise ImageError(f"{name}not a picture, or in none of the formats {formats}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}too many pixels: {error}") from error
    except OSError as error:
        raise ImageError(f"{name}{error.strerror or error}") from error
    except Exception as error:
        raise ImageError(f"{name}damaged: {type(error).__name__}: {error}") from error


def _to_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    _check_size(image, max_pixels)
    _load(image)
    upright = _upright(image)
    rgb = _convert(image)
    if upright is not None:
        rgb = rgb.transpose(upright)
    elif rgb is image:
        rgb = image.copy()
    # Otherwise whoever honours the orientation again would turn the picture a second time.
    rgb.info = {}
    return rgb


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width_px, height_px = image.size
    if width_px * height_px > max_pixels:
        raise ImageError(
            f"too many pixels: {width_px} x {height_px} is more than the limit of {max_pixels}"
        )


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except OSError:
        # Pillow decodes the pixels and then reads what follows them. If only that is damaged, the
        # second call finds the pixels complete; if they are not, it fails as the first did.
        image.load()


def _upright(image: Image.Image) -> Image.Transpose | None:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG)
    except Exception:  # damaged metadata is no reason to refuse sound pixels
        return None
    return UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _convert(image: Image.Image) -> Image.Image:
    """Opaque 8-bit RGB: `image` itself if it is that, otherwise a new picture."""
    if image.mode == "F":
        raise ImageError("floating point pixels have no defined range: save it as 8 or 16 bit")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _convert_16_bit(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _convert_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64).clip(0, 65535)  # (H, W)
    grey = (values + 128) // 257  # rounds to the nearest: 257 is odd, so there are no ties
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
