"""Pictures to tiles: which canvas, what size, how to cut. Llama 3.2's rules.

Axes: `T` tiles of an image, row by row over its canvas; a canvas is (rows, columns) of tiles.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class TiledImage:
    """A picture laid on its canvas and cut.

    tiles: (T, 3, px, px) uint8, black where the picture does not reach.
    aspect_ratio_id: 1 + the canvas' index among the supported ones; 0 is kept for "no image".
    canvas: (rows, columns), rows * columns = T.
    """

    tiles: Tensor
    aspect_ratio_id: int
    canvas: tuple[int, int]


@lru_cache(maxsize=64)
def supported_canvases(max_num_tiles: int) -> tuple[tuple[int, int], ...]:
    """Every (rows, columns) of at most `max_num_tiles` tiles, in the order of aspect-ratio ids.

    >>> supported_canvases(4)
    ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))

    Raises:
        ValueError: `max_num_tiles` is below 1.
    """
    if max_num_tiles < 1:
        raise ValueError(f"max_num_tiles is {max_num_tiles}, needed: at least 1")
    return tuple(
        (rows, columns)
        for rows in range(1, max_num_tiles + 1)
        for columns in range(1, max_num_tiles // rows + 1)
    )


@lru_cache(maxsize=4096)
def choose_canvas(
    height_px: int, width_px: int, tile_size_px: int, max_num_tiles: int
) -> tuple[int, int]:
    """Return the canvas (rows, columns) that suits a picture best.

    That is the one on which the picture is enlarged least; where it must shrink on all of them, the
    one on which it shrinks least. Among equals, the one with the fewest tiles: of all that are
    equally good it comes first, because its rows and columns are both the fewest.
    https://github.com/huggingface/transformers/blob/main/src/transformers/models/mllama/image_processing_mllama.py

    Raises:
        ValueError: the picture has no pixels, or there is no canvas.
    """
    if height_px < 1 or width_px < 1:
        raise ValueError(f"a picture of {width_px}x{height_px} pixels has nothing to tile")

    def badness(canvas: tuple[int, int]) -> tuple[bool, float]:
        rows, columns = canvas
        scale = min(rows * tile_size_px / height_px, columns * tile_size_px / width_px)
        return scale < 1, scale if scale >= 1 else -scale

    return min(supported_canvases(max_num_tiles), key=badness)


def fit_size(
    height_px: int, width_px: int, canvas: tuple[int, int], tile_size_px: int
) -> tuple[int, int]:
    """Return the (height, width) to which a picture is resized for its canvas.

    The shape is kept but for rounding down, and a side never falls below 1. A picture is enlarged
    only if both sides are shorter than a tile, until the longer one is a tile long; the rest of the
    canvas stays empty.
    """
    rows, columns = canvas
    height_limit = min(max(height_px, tile_size_px), rows * tile_size_px)
    width_limit = min(max(width_px, tile_size_px), columns * tile_size_px)
    height_scale = height_limit / height_px
    width_scale = width_limit / width_px
    if width_scale < height_scale:
        return min(max(int(height_px * width_scale), 1), height_limit), width_limit
    return height_limit, min(max(int(width_px * height_scale), 1), width_limit)


def cut_tiles(image: Tensor, tile_size_px: int) -> Tensor:
    """Cut an image into square tiles, row by row.

    Args:
        image: (3, H, W); H and W are multiples of `tile_size_px`.
    Returns:
        (T, 3, tile_size_px, tile_size_px), same dtype, contiguous.
    Raises:
        ValueError: a side is not a multiple of `tile_size_px`.
    """
    channels, height, width = image.shape
    if height % tile_size_px or width % tile_size_px:
        raise ValueError(
            f"an image of {width}x{height} pixels cannot be cut into tiles of {tile_size_px}; "
            "pad it to a multiple first"
        )
    rows, columns = height // tile_size_px, width // tile_size_px
    grid = image.view(channels, rows, tile_size_px, columns, tile_size_px)
    tiles = grid.permute(1, 3, 0, 2, 4)  # (rows, columns, 3, px, px)
    return tiles.reshape(-1, channels, tile_size_px, tile_size_px).contiguous()


def tile_picture(image: Image.Image, tile_size_px: int, max_num_tiles: int) -> TiledImage:
    """Resize a picture for its canvas, lay it in the top left corner, and cut it.

    Args:
        image: of mode RGB, any size.
    Raises:
        ValueError: the picture is of another mode or has no pixels.
    """
    if image.mode != "RGB":
        raise ValueError(f"the picture's mode is {image.mode}, needed: RGB; convert it first")
    width, height = image.size
    canvas = choose_canvas(height, width, tile_size_px, max_num_tiles)
    new_height, new_width = fit_size(height, width, canvas, tile_size_px)
    if (new_height, new_width) != (height, width):
        image = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
    rows, columns = canvas
    pixels = np.zeros((rows * tile_size_px, columns * tile_size_px, 3), dtype=np.uint8)
    pixels[:new_height, :new_width] = np.asarray(image)
    tiles = cut_tiles(torch.from_numpy(pixels).permute(2, 0, 1), tile_size_px)
    return TiledImage(tiles, supported_canvases(max_num_tiles).index(canvas) + 1, canvas)
