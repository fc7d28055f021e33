"""Tiling equals transformers' two Mllama image processors: geometry exactly, pixels nearly.

Both resize bilinearly with antialiasing on 8-bit pixels: `MllamaImageProcessorPil` with Pillow, as
we do, `MllamaImageProcessor` with torchvision on tensors. Neither fails on a picture of any size:
a side that would round to 0 becomes 1, for them and for us.
"""

import math
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers.models.mllama import image_processing_mllama, image_processing_pil_mllama

from encoders.config import VisionConfig
from encoders.tiling import (
    TiledImage,
    choose_canvas,
    fit_size,
    supported_canvases,
    tile_draft,
    tile_picture,
)
from encoders.vit import VisionEncoder

BACKENDS = {
    "pillow": image_processing_pil_mllama.MllamaImageProcessorPil,
    "torchvision": image_processing_mllama.MllamaImageProcessor,
}
# Of 255 steps. Pillow resizes for us too, so nothing may differ. torchvision rounds its weights and
# sums at other places, which moved pixels by at most one step in 400 pictures; two are allowed, for
# machines on which it has no 8-bit kernel.
MOST_STEPS = {"pillow": 0, "torchvision": 2}
TILE_SIZES_PX = (28, 56, 112, 224, 336, 448, 560)
MOST_TILES = (1, 2, 3, 4, 5, 6)
EXTREME_SIZES = [  # (height, width)
    (1, 1),
    (1, 2),
    (2, 1),
    (3, 3),
    (1, 97),
    (97, 1),
    (3, 500),
    (500, 3),
    (1, 30000),
    (30000, 1),
    (2, 30000),
    (30000, 3),
    (3000, 2000),
]


def picture(height_px: int, width_px: int, seed: int) -> Image.Image:
    """Noise, or every other time a smooth gradient."""
    if seed % 2:
        pixels = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3))
    else:
        rows, columns = np.mgrid[0:height_px, 0:width_px]
        pixels = np.stack([rows * 3 + seed, columns * 2, rows + columns], axis=-1) % 256
    return Image.fromarray(pixels.astype(np.uint8))


def side_px(rng: random.Random, tile_size_px: int) -> int:
    """A side of any magnitude, or next to a multiple of a tile's, or as thin as can be."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.randint(1, 3000)
    if kind == 1:
        return round(math.exp(rng.uniform(0, math.log(60_000))))
    if kind == 2:
        return max(1, rng.randint(1, 7) * tile_size_px + rng.randint(-1, 1))
    return rng.choice((1, 2, 3, tile_size_px // 2, 30_000))


@cache
def processor(backend: str, tile_size_px: int, max_num_tiles: int) -> Any:
    size = {"height": tile_size_px, "width": tile_size_px}
    return BACKENDS[backend](
        size=size, max_image_tiles=max_num_tiles, do_rescale=False, do_normalize=False
    )


def assert_equals_processor(
    ours: TiledImage,
    image: Image.Image,
    backend: str,
    tile_size_px: int,
    max_num_tiles: int,
    most_steps: int | None = None,
) -> None:
    theirs = processor(backend, tile_size_px, max_num_tiles)(image, return_tensors="pt")
    rows, columns = ours.canvas
    assert theirs["aspect_ratio_ids"].tolist() == [[ours.aspect_ratio_id]]
    assert theirs["num_tiles"] == [[len(ours.tiles)]] == [[rows * columns]]
    used = [position < len(ours.tiles) for position in range(max_num_tiles)]
    assert theirs["aspect_ratio_mask"][0, 0].bool().tolist() == used
    pixels = theirs["pixel_values"][0, 0]  # (max_num_tiles, 3, px, px) float32, 0..255
    difference = (ours.tiles.float() - pixels[: len(ours.tiles)]).abs().max()
    assert difference <= (MOST_STEPS[backend] if most_steps is None else most_steps)
    assert not pixels[len(ours.tiles) :].any()


@pytest.mark.parametrize("max_num_tiles", [*MOST_TILES, 9, 12])
def test_canvases_come_in_the_order_of_aspect_ratio_ids(max_num_tiles: int) -> None:
    expected = image_processing_mllama.get_all_supported_aspect_ratios(max_num_tiles)
    assert list(supported_canvases(max_num_tiles)) == expected


def test_canvas_and_size_equal_transformers_for_2000_sizes() -> None:
    """Both processors ask these two functions, with the picture's size; nothing else decides."""
    rng = random.Random(0)
    used, num_thin = set(), 0
    for _ in range(2000):
        tile_size_px, max_num_tiles = rng.choice(TILE_SIZES_PX), rng.choice(MOST_TILES)
        height = side_px(rng, tile_size_px)
        width = side_px(rng, tile_size_px) if rng.random() < 0.9 else height  # squares: ties
        case = (height, width, tile_size_px, max_num_tiles)
        canvas = choose_canvas(height, width, tile_size_px, max_num_tiles)
        size = fit_size(height, width, canvas, tile_size_px)
        for module in (image_processing_mllama, image_processing_pil_mllama):
            canvas_px = module.get_optimal_tiled_canvas(height, width, max_num_tiles, tile_size_px)
            assert tuple(side * tile_size_px for side in canvas) == canvas_px, case
            expected = module.get_image_size_fit_to_canvas(height, width, *canvas_px, tile_size_px)
            assert size == expected, case
        used.add((max_num_tiles, canvas))
        num_thin += min(size) == 1
    assert used == {(most, canvas) for most in MOST_TILES for canvas in supported_canvases(most)}
    assert num_thin > 50  # sides that were rounded up to 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_tiles_equal_the_processors(backend: str) -> None:
    rng = random.Random(1)
    for seed in range(40):
        tile_size_px, max_num_tiles = rng.choice((28, 56, 112, 224)), rng.choice(MOST_TILES)
        # up to three canvases wide, so that about half of the pictures shrink
        height, width = (rng.randint(1, 4 * tile_size_px) for _ in range(2))
        image = picture(height, width, seed)
        ours = tile_picture(image, tile_size_px, max_num_tiles)
        assert_equals_processor(ours, image, backend, tile_size_px, max_num_tiles)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("height", "width"), EXTREME_SIZES)
def test_tiles_of_extreme_pictures_equal_the_processors(
    backend: str, height: int, width: int
) -> None:
    image = picture(height, width, seed=height % 2)
    for tile_size_px, max_num_tiles in ((28, 4), (560, 1), (56, 6)):
        ours = tile_picture(image, tile_size_px, max_num_tiles)
        assert_equals_processor(ours, image, backend, tile_size_px, max_num_tiles)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tiles_of_an_unreduced_draft_equal_the_processors_within_two_steps(backend: str) -> None:
    rng = random.Random(2)
    sizes = [tuple(rng.randint(1, 400) for _ in range(2)) for _ in range(20)]
    for seed, (height, width) in enumerate([*sizes, *EXTREME_SIZES]):
        image = picture(height, width, seed)
        ours = tile_draft(image, (height, width), 56, 4)
        assert_equals_processor(ours, image, backend, 56, 4, most_steps=2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_patch_embedding_reads_the_processors_pixels(backend: str) -> None:
    config = VisionConfig(
        tile_size_px=56,
        patch_size_px=14,
        max_num_tiles=4,
        hidden_size=8,
        intermediate_size=8,
        num_heads=1,
        num_local_layers=1,
        num_global_layers=0,
        intermediate_layers=(),
    )
    encoder = VisionEncoder(config)
    read: list[Tensor] = []
    encoder.patch_embedding.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    image = picture(56, 112, seed=1)  # two tiles without a resize
    ours = tile_picture(image, 56, 4)
    encoder(ours.tiles, torch.tensor([2]), torch.tensor([ours.aspect_ratio_id]))
    statistics = {"image_mean": config.image_mean, "image_std": config.image_std}
    theirs = BACKENDS[backend](size={"height": 56, "width": 56}, **statistics)
    expected = theirs(image, return_tensors="pt")["pixel_values"][0, 0, :2]
    # a few roundings to float32 of numbers up to 2.7
    torch.testing.assert_close(read[0], expected, rtol=0, atol=2e-6)
