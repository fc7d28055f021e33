"""Pictures to tiles: which canvas, what size, how to cut. Llama 3.2's rules.

Axes: `T` tiles of an image, row by row over its canvas; a canvas is (rows, columns) of tiles.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

# After these of Pillow's turns, height is width.
SWAPPING_TURNS = frozenset(
    {
        Image.Transpose.TRANSPOSE,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
        Image.Transpose.ROTATE_270,
    }
)


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

    @property
    def num_tiles(self) -> int:
        """T."""
        return len(self.tiles)


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


def place(
    height_px: int, width_px: int, tile_size_px: int, max_num_tiles: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return a picture's canvas (rows, columns) and the (height, width) that it gets on it.

    Raises:
        ValueError: the picture has no pixels, or there is no canvas.
    """
    canvas = choose_canvas(height_px, width_px, tile_size_px, max_num_tiles)
    return canvas, fit_size(height_px, width_px, canvas, tile_size_px)


def cut_tiles(image: Tensor, canvas: tuple[int, int], tile_size_px: int) -> Tensor:
    """Lay an image in the top left corner of a black canvas and cut the canvas, row by row.

    Args:
        image: (3, H, W), of any strides.
        canvas: (rows, columns) of tiles.
    Returns:
        (rows * columns, 3, tile_size_px, tile_size_px), same dtype, contiguous, a copy.
    Raises:
        ValueError: the image is larger than the canvas.
    """
    rows, columns = canvas
    channels, height, width = image.shape
    if height > rows * tile_size_px or width > columns * tile_size_px:
        raise ValueError(
            f"an image of {width}x{height} pixels does not fit on {rows} rows and {columns} "
            f"columns of tiles of {tile_size_px}; resize it first"
        )
    tiles = image.new_zeros(rows * columns, channels, tile_size_px, tile_size_px)
    for index, tile in enumerate(tiles):
        top, left = (steps * tile_size_px for steps in divmod(index, columns))
        part = image[:, top : top + tile_size_px, left : left + tile_size_px]
        tile[:, : part.shape[1], : part.shape[2]] = part
    return tiles


def join_tiles(tiles: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Put a canvas together from its tiles, what `cut_tiles` undoes.

    Args:
        tiles: (rows * columns, C, px, px), row by row.
        canvas: (rows, columns) of tiles.
    Returns:
        (C, rows * px, columns * px), same dtype, a copy.
    """
    rows, columns = canvas
    _, channels, height, width = tiles.shape
    grid = tiles.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * height, columns * width)


def tile_picture(image: Image.Image, tile_size_px: int, max_num_tiles: int) -> TiledImage:
    """Resize a picture for its canvas with Pillow, lay it in the top left corner, and cut it.

    Args:
        image: of mode RGB, any size.
    Raises:
        ValueError: the picture is of another mode or has no pixels.
    """
    canvas, (height, width) = place(image.height, image.width, tile_size_px, max_num_tiles)
    _check_mode(image)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return _tiled(_pixels(image), canvas, tile_size_px, max_num_tiles)


def tile_draft(
    image: Image.Image,
    full_size_px: tuple[int, int],
    tile_size_px: int,
    max_num_tiles: int,
    extent_px: tuple[float, float] | None = None,
    turn: Image.Transpose | None = None,
) -> TiledImage:
    """Tile a picture that may have been decoded at a reduced scale, two to four times as fast.

    The canvas and the size on it are those of the full picture, the filter is the same; torch's
    8-bit kernel computes it. On a picture that was not reduced a pixel differs from
    `tile_picture`'s by two of 255 steps at most, as transformers' torchvision processor does.

    Args:
        image: of mode RGB.
        full_size_px: (height, width) of the full picture, upright.
        extent_px: (height, width) of what the picture fills of `image`, from the top left on; None
            is all of it. A reduced scale may end within a pixel.
        turn: what makes the picture upright, if it does not stand so.
    Raises:
        ValueError: the picture is of another mode or has no pixels.
    """
    canvas, (height, width) = place(*full_size_px, tile_size_px, max_num_tiles)
    _check_mode(image)
    pixels = _pixels(image)
    size = (width, height) if turn in SWAPPING_TURNS else (height, width)
    if pixels.shape[1:] != size:
        pixels = _resize(pixels, size, extent_px or (image.height, image.width))
    if turn is not None:  # when it is small; as Pillow, whose names these are
        resized = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        pixels = _pixels(resized.transpose(turn))
    return _tiled(pixels, canvas, tile_size_px, max_num_tiles)


def _resize(pixels: Tensor, size: tuple[int, int], extent_px: tuple[float, float]) -> Tensor:
    """Resize what fills `extent_px` of (3, H, W) to `size`."""
    if extent_px == tuple(pixels.shape[1:]):
        return F.interpolate(pixels[None], size, mode="bilinear", antialias=True)[0]
    # Torch has a factor for parts of a pixel and rounds the size down. What lies beyond the extent
    # makes less than a pixel; the last digits keep the product from falling short of the size.
    factors = [(1 + 1e-9) * side / extent for side, extent in zip(size, extent_px, strict=True)]
    return F.interpolate(pixels[None], scale_factor=factors, mode="bilinear", antialias=True)[0]


def _check_mode(image: Image.Image) -> None:
    if image.mode != "RGB":
        raise ValueError(f"the picture's mode is {image.mode}, needed: RGB; convert it first")


def _pixels(image: Image.Image) -> Tensor:
    """(3, H, W) uint8, a copy whose channels lie next to each other, as torch's kernel likes it."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _tiled(
    pixels: Tensor, canvas: tuple[int, int], tile_size_px: int, max_num_tiles: int
) -> TiledImage:
    aspect_ratio_id = supported_canvases(max_num_tiles).index(canvas) + 1
    return TiledImage(cut_tiles(pixels, canvas, tile_size_px), aspect_ratio_id, canvas)
