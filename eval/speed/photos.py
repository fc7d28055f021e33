"""Pictures for the comparisons: as large and as hard to compress as photos, the same every time."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from data.pack import pack
from data.schema import RawSample, Sample
from vlm.errors import UserError

SMALL_PX = (500, 375)  # the size of COCO's and Flickr's pictures, nearly


def parse_size(text: str) -> tuple[int, int]:
    """Read "4000x3000": (width, height).

    Raises:
        UserError: it is something else.
    """
    width, _, height = text.strip().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f"a size is {text!r}, needed: width and height in pixels, as in 640x480")
    return int(width), int(height)


def make_photo(width_px: int, height_px: int, seed: int) -> Image.Image:
    """Colours that change over a few dozen pixels, and grain."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height_px // 32 + 2, width_px // 32 + 2, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width_px, height_px), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth).astype(np.int16)
    pixels += rng.integers(-8, 9, (height_px, width_px, 1), dtype=np.int16)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode_jpeg(photo: Image.Image) -> bytes:
    """The bytes of its JPEG file, with colours at half the resolution, as cameras write it."""
    buffer = BytesIO()
    photo.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def pack_photos(
    folder: Path,
    size_px: tuple[int, int],
    num_samples: int,
    num_photos: int = 4,
    samples_per_shard: int | None = None,
) -> None:
    """Write shards of photos of (width, height), a few of them over and over, each captioned.

    samples_per_shard: None makes four shards.
    """
    photos = [encode_jpeg(make_photo(*size_px, seed)) for seed in range(num_photos)]
    samples = (_captioned(index, photos[index % num_photos]) for index in range(num_samples))
    pack(samples, folder, samples_per_shard or max(1, num_samples // 4))


def _captioned(index: int, photo: bytes) -> RawSample:
    words: Sequence[str] = ("blurred", "bright", "dark", "calm")
    caption = f"Picture {index}: {words[index % 4]} colours that run into each other, with grain."
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe it."}]},
        {"role": "assistant", "content": [{"type": "text", "text": caption}]},
    ]
    return RawSample(f"photo{index:06d}", Sample.parse({"messages": messages}), [photo])
