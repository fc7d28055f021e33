"""Pictures damaged as cameras, networks and scanners do it, at five severities.

The kinds and their severities are ImageNet-C's, with its constants
(https://arxiv.org/abs/1903.12261; https://github.com/hendrycks/robustness, corruptions.py), but
for `rotation`, which is ours. They are those of the set that need no other library, and `blur` and
`speckle_noise` are among those that ImageNet-C holds out for validation.

ImageNet-C's pictures are 224 px wide and high. Ours have any size: lengths in pixels are of a
picture whose shorter side is 224 px, and grow with it. Values are rounded to 8 bits, where
ImageNet-C rounds down.
"""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from eval.conditions import Corruption, CorruptionKind
from eval.items import Item, Picture
from vlm.images import read_image

REFERENCE_PX = 224

# (H, W, 3) float32, 0..1
Pixels = NDArray[np.float32]
Draw = np.random.Generator


def corrupted(item: Item, corruption: Corruption | None) -> Item:
    """The same item with its pictures damaged when they are read; None leaves them alone."""
    if corruption is None:
        return item
    images = tuple(_corrupted_picture(image, corruption) for image in item.images)
    return replace(item, images=images)


def corrupt(content: bytes, corruption: Corruption, name: str = "") -> bytes:
    """Damage a picture.

    Args:
        content: the bytes of a file, of any format that is read.
        name: what is drawn depends on it and on the corruption's seed, on nothing else.
    Returns:
        the bytes of a file of the same width and height: PNG, which loses nothing, but for `jpeg`.
    Raises:
        ImageError: it cannot be read.
    """
    image = read_image(content)
    kind = _KINDS[corruption.kind]
    damaged = kind.damage(image, kind.strengths[corruption.severity - 1], _draw(corruption, name))
    if isinstance(damaged, bytes):
        return damaged
    file = BytesIO()
    damaged.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _corrupted_picture(picture: Picture, corruption: Corruption) -> Picture:
    def read() -> bytes:
        return corrupt(picture.read(), corruption, picture.name)

    return Picture(picture.name, read)


def _draw(corruption: Corruption, name: str) -> Draw:
    """Numbers that are the same at every severity: more of the same damage, not another one."""
    words = f"{corruption.seed}\n{corruption.kind}\n{name}".encode("utf-8", "surrogatepass")
    return np.random.default_rng(int.from_bytes(hashlib.sha256(words).digest()))


def _noise(pixels: Pixels, deviation: float, draw: Draw) -> Pixels:
    return pixels + deviation * draw.standard_normal(pixels.shape, np.float32)


def _shot_noise(pixels: Pixels, photons: float, draw: Draw) -> Pixels:
    return (draw.poisson(pixels * photons) / photons).astype(np.float32)


def _impulse_noise(pixels: Pixels, share: float, draw: Draw) -> Pixels:
    hit = draw.random(pixels.shape, np.float32) < share
    salt = (draw.random(pixels.shape, np.float32) < 0.5).astype(np.float32)
    return np.where(hit, salt, pixels)


def _speckle_noise(pixels: Pixels, deviation: float, draw: Draw) -> Pixels:
    return pixels + pixels * deviation * draw.standard_normal(pixels.shape, np.float32)


def _brightness(pixels: Pixels, more: float, draw: Draw) -> Pixels:
    """Add to the value of HSV, which keeps hue and saturation: all channels by one factor."""
    value = pixels.max(axis=2, keepdims=True)
    brighter = np.minimum(value + np.float32(more), 1)
    return np.where(value > 0, pixels * brighter / np.maximum(value, 1e-6), brighter)


def _contrast(pixels: Pixels, factor: float, draw: Draw) -> Pixels:
    means = pixels.mean(axis=(0, 1), keepdims=True)
    return (pixels - means) * np.float32(factor) + means


def _blur(image: Image.Image, deviation_px: float, draw: Draw) -> Image.Image:
    """Pillow's, which comes near a Gaussian by boxes and so takes no longer for large pictures."""
    scale = min(image.size) / REFERENCE_PX
    return image.filter(ImageFilter.GaussianBlur(deviation_px * scale))


def _pixelate(image: Image.Image, scale: float, draw: Draw) -> Image.Image:
    small = max(1, int(image.width * scale)), max(1, int(image.height * scale))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)


def _jpeg(image: Image.Image, quality: float, draw: Draw) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", quality=int(quality))
    return file.getvalue()


def _rotation(image: Image.Image, degrees: float, draw: Draw) -> Image.Image:
    """Turn about the centre, either way; what comes into the picture has its mean colour."""
    mean = tuple(int(channel) for channel in np.asarray(image).mean(axis=(0, 1)).round())
    turned_by = degrees if draw.random() < 0.5 else -degrees
    return image.rotate(turned_by, Image.Resampling.BILINEAR, fillcolor=mean)


def _on_pixels(
    damage: Callable[[Pixels, float, Draw], Pixels], image: Image.Image, strength: float, draw: Draw
) -> Image.Image:
    damaged = damage(np.asarray(image).astype(np.float32) / np.float32(255), strength, draw)
    return Image.fromarray((damaged.clip(0, 1) * 255).round().astype(np.uint8))


class _Kind(NamedTuple):
    """strengths: at severities 1 to 5."""

    damage: Callable[[Image.Image, float, Draw], Image.Image | bytes]
    strengths: tuple[float, float, float, float, float]


_KINDS: dict[CorruptionKind, _Kind] = {
    "noise": _Kind(partial(_on_pixels, _noise), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": _Kind(partial(_on_pixels, _shot_noise), (60, 25, 12, 5, 3)),
    "impulse_noise": _Kind(partial(_on_pixels, _impulse_noise), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "speckle_noise": _Kind(partial(_on_pixels, _speckle_noise), (0.15, 0.2, 0.35, 0.45, 0.6)),
    "blur": _Kind(_blur, (1, 2, 3, 4, 6)),  # px, standard deviation
    "pixelate": _Kind(_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": _Kind(_jpeg, (25, 18, 15, 10, 7)),
    "brightness": _Kind(partial(_on_pixels, _brightness), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": _Kind(partial(_on_pixels, _contrast), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "rotation": _Kind(_rotation, (5, 10, 15, 20, 30)),  # degrees
}
