"""Pictures are cut into tiles row by row, on black; `test_tiling_parity.py` has the peer."""

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.tiling import cut_tiles, tile_draft, tile_picture


def picture(width_px: int, height_px: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_tiles_are_cut_row_by_row() -> None:
    image = torch.arange(6).view(1, 2, 3).expand(3, 2, 3)
    image = image.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    tiles = cut_tiles(image, (2, 3), 4)
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
    with pytest.raises(ValueError, match="30x28 pixels does not fit on 1 rows and 1 columns"):
        cut_tiles(torch.zeros(3, 28, 30), (1, 1), 28)


def test_a_draft_of_an_unreduced_picture_is_the_picture_within_a_step() -> None:
    for seed, (width, height) in enumerate([(28, 28), (31, 17), (200, 90), (5, 300), (56, 28)]):
        image = picture(width, height, seed)
        exact, draft = tile_picture(image, 28, 4), tile_draft(image, (height, width), 28, 4)
        assert (draft.canvas, draft.aspect_ratio_id) == (exact.canvas, exact.aspect_ratio_id)
        apart = (draft.tiles.int() - exact.tiles.int()).abs().max()
        # Both round two passes; torch's weights have fewer bits. 0 where nothing is resized.
        assert apart <= (0 if (width, height) in ((28, 28), (56, 28)) else 2)
        assert draft.tiles.is_contiguous()


def test_a_reduced_picture_lies_where_the_full_one_would() -> None:
    """100 x 61 on tiles of 28: the reduced copy alone would be shaped 50 x 31, a row higher."""
    full = Image.new("RGB", (100, 61), "white")
    exact = tile_picture(full, 28, 4)
    draft = tile_draft(full.resize((50, 31)), (61, 100), 28, 4, extent_px=(30.5, 50.0))
    assert draft.canvas == exact.canvas and torch.equal(draft.tiles, exact.tiles)


@pytest.mark.parametrize("turn", [None, *Image.Transpose])
def test_a_scale_that_ends_within_a_pixel_moves_nothing(turn: Image.Transpose | None) -> None:
    """Ramps of 405 x 301 pixels, of which an eighth is 50.625 x 37.625: 51 x 38, partly beyond."""
    across, down = np.meshgrid(np.linspace(0, 255, 405), np.linspace(0, 255, 301))
    full = Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8))
    padded = np.pad(np.asarray(full), ((0, 3), (0, 3), (0, 0)), mode="edge")
    reduced = Image.fromarray(padded).reduce(8)
    upright = full if turn is None else full.transpose(turn)
    exact = tile_picture(upright, 12, 4)
    size = upright.height, upright.width
    draft = tile_draft(reduced, size, 12, 4, extent_px=(37.625, 50.625), turn=turn)
    assert draft.canvas == exact.canvas
    # 11 to 20 steps a pixel; with a part of a pixel taken for a whole one, the last are 12 off
    apart = (draft.tiles.int() - exact.tiles.int()).abs()
    assert apart.max() <= 5 and apart.float().mean() < 1
