"""Kept images: what makes two of them the same, and how many are kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.tiling import TiledImage
from vlm.chat.processor import Processor
from vlm.decoder.cache import KeyValues
from vlm.engine.image_cache import ImageCache, image_key


def of_bytes(num_bytes: int) -> dict[int, KeyValues]:
    half = torch.zeros(1, 1, num_bytes // 8, 1)
    return {3: KeyValues(half, half)}


def test_the_same_picture_has_the_same_key_from_any_object(processor: Processor) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    first, second = (processor.tile(Image.fromarray(pixels)) for _ in range(2))
    assert image_key(first) == image_key(second)


def test_the_same_bytes_of_another_size_or_mode_have_another_key(processor: Processor) -> None:
    """One buffer taken as pictures of several shapes; grey, it is three times as many pixels."""
    buffer = bytes(range(256)) * 18
    pictures = [
        Image.frombytes("RGB", (48, 32), buffer[: 48 * 32 * 3]),
        Image.frombytes("RGB", (32, 48), buffer[: 48 * 32 * 3]),
        Image.frombytes("RGB", (16, 96), buffer[: 48 * 32 * 3]),
        Image.frombytes("L", (48, 96), buffer).convert("RGB"),
        Image.frombytes("L", (96, 48), buffer).convert("RGB"),
    ]
    assert len({image_key(processor.tile(picture)) for picture in pictures}) == len(pictures)


def test_the_same_tiles_on_another_canvas_have_another_key() -> None:
    tall = TiledImage(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), 5, (2, 1))
    wide = replace(tall, aspect_ratio_id=2, canvas=(1, 2))
    fewer = replace(tall, tiles=torch.zeros(1, 3, 32, 16, dtype=torch.uint8))
    assert len({image_key(image) for image in (tall, wide, fewer)}) == 3


def test_the_images_used_last_are_kept_within_the_bytes() -> None:
    cache = ImageCache(max_bytes=300)
    for key in "abc":
        cache.put(key, of_bytes(96))
    assert cache.get("a") is not None  # now b is the one unused for longest
    cache.put("d", of_bytes(96))
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]
    assert (len(cache), cache.num_bytes) == (3, 288)


@pytest.mark.parametrize("num_bytes", [304, 4000])
def test_an_image_too_large_to_keep_drops_no_other(num_bytes: int) -> None:
    cache = ImageCache(max_bytes=300)
    cache.put("a", of_bytes(96))
    cache.put("large", of_bytes(num_bytes))
    assert cache.get("large") is None and cache.get("a") is not None


def test_an_image_that_is_put_twice_is_counted_once() -> None:
    cache = ImageCache(max_bytes=300)
    for _ in range(5):
        cache.put("a", of_bytes(96))
    assert cache.num_bytes == 96
