"""Tiling equals transformers' Mllama processor: canvas, size, pixels and order of tiles."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.mllama import image_processing_pil_mllama as reference

from encoders.tiling import choose_canvas, cut_tiles, fit_size, supported_canvases, tile_picture


def picture(width_px: int, height_px: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def random_sizes(number: int) -> list[tuple[int, int]]:
    """Sizes of all magnitudes and shapes, and those next to multiples of usual tile sizes."""
    rng = random.Random(0)
    sizes = [(rng.randint(1, 3000), rng.randint(1, 3000)) for _ in range(number // 3)]
    sizes += [
        (int(4 ** rng.uniform(0, 6)), int(4 ** rng.uniform(0, 6))) for _ in range(number // 3)
    ]
    steps = [k * px + d for px in (224, 448, 560) for k in (1, 2, 3, 4) for d in (-1, 0, 1)]
    sizes += [(rng.choice(steps), rng.choice(steps)) for _ in range(number // 3)]
    return sizes


@pytest.mark.parametrize("max_num_tiles", [1, 2, 3, 4, 6, 9])
def test_canvases_come_in_the_order_of_aspect_ratio_ids(max_num_tiles: int) -> None:
    expected = reference.get_all_supported_aspect_ratios(max_num_tiles)
    assert list(supported_canvases(max_num_tiles)) == expected


@pytest.mark.parametrize(("tile_size_px", "max_num_tiles"), [(224, 4), (448, 4), (560, 4), (48, 9)])
def test_canvas_and_size_equal_transformers(tile_size_px: int, max_num_tiles: int) -> None:
    used = set()
    for height, width in random_sizes(600):
        canvas = choose_canvas(height, width, tile_size_px, max_num_tiles)
        used.add(canvas)
        canvas_px = reference.get_optimal_tiled_canvas(height, width, max_num_tiles, tile_size_px)
        assert tuple(side * tile_size_px for side in canvas) == canvas_px, (height, width)
        size = fit_size(height, width, canvas, tile_size_px)
        expected = reference.get_image_size_fit_to_canvas(height, width, *canvas_px, tile_size_px)
        assert size == expected, (height, width, canvas)
    assert used == set(supported_canvases(max_num_tiles))


def test_pixels_and_order_equal_transformers() -> None:
    processor = reference.MllamaImageProcessorPil(
        size={"height": 32, "width": 32}, do_rescale=False, do_normalize=False, max_image_tiles=4
    )
    rng = random.Random(1)
    for seed in range(40):
        image = picture(rng.randint(1, 200), rng.randint(1, 200), seed)
        ours = tile_picture(image, 32, 4)
        theirs = processor(image, return_tensors="pt")
        assert ours.aspect_ratio_id == theirs["aspect_ratio_ids"].item()
        assert len(ours.tiles) == theirs["num_tiles"][0][0] == ours.canvas[0] * ours.canvas[1]
        expected = theirs["pixel_values"][0, 0]
        assert torch.equal(ours.tiles.to(expected.dtype), expected[: len(ours.tiles)])


def test_tiles_are_cut_row_by_row() -> None:
    image = torch.arange(6).view(1, 2, 3).expand(3, 2, 3)
    image = image.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    tiles = cut_tiles(image, 4)
    assert tiles.shape == (6, 3, 4, 4) and tiles.is_contiguous()
    assert [tile.unique().tolist() for tile in tiles] == [[0], [1], [2], [3], [4], [5]]


def test_the_canvas_is_black_below_and_right_of_the_picture() -> None:
    white = Image.new("RGB", (70, 25), "white")
    tiled = tile_picture(white, 32, 4)
    assert tiled.canvas == (1, 3) and tiled.tiles.dtype == torch.uint8
    assert tiled.tiles[:2, :, :25].eq(255).all()
    assert tiled.tiles[2, :, :25, :6].eq(255).all()
    assert tiled.tiles[:, :, 25:].eq(0).all() and tiled.tiles[2, :, :, 6:].eq(0).all()


def test_the_tiles_are_a_contiguous_copy_of_the_picture() -> None:
    image = picture(32, 32)
    tiles = tile_picture(image, 32, 4).tiles
    assert tiles.is_contiguous()
    tiles.zero_()
    assert np.asarray(image).any()


@pytest.mark.parametrize(
    ("size", "canvas"), [((1, 1), (1, 1)), ((30000, 1), (1, 4)), ((1, 30000), (4, 1))]
)
def test_extreme_pictures_are_tiled(size: tuple[int, int], canvas: tuple[int, int]) -> None:
    tiled = tile_picture(Image.new("RGB", size, "white"), 28, 4)
    assert tiled.canvas == canvas
    assert tiled.tiles.shape == (canvas[0] * canvas[1], 3, 28, 28)
    assert tiled.tiles.eq(255).any(dim=(1, 2, 3)).all()


def test_what_cannot_be_tiled_is_named() -> None:
    with pytest.raises(ValueError, match="mode is L, needed: RGB"):
        tile_picture(Image.new("L", (4, 4)), 28, 4)
    with pytest.raises(ValueError, match="0x5 pixels"):
        tile_picture(Image.new("RGB", (0, 5)), 28, 4)
    with pytest.raises(ValueError, match="max_num_tiles is 0"):
        tile_picture(Image.new("RGB", (4, 4)), 28, 0)
    with pytest.raises(ValueError, match="30x28 pixels cannot be cut into tiles of 28"):
        cut_tiles(torch.zeros(3, 28, 30), 28)
