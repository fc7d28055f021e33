"""Example pictures, drawn when the demo starts: coloured shapes on one to four tiles.

They have the sizes of the model's own canvases, so that each shows another cut into tiles, and look
like the scenes that `vlm quickstart` trains on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image, ImageDraw

Kind = Literal["circle", "square", "triangle"]

SMOOTHING = 4
BACKGROUND = (232, 230, 226)
COLOURS = {
    "red": (220, 40, 40),
    "green": (35, 155, 60),
    "blue": (40, 85, 220),
    "yellow": (240, 205, 30),
    "purple": (155, 45, 175),
    "black": (35, 35, 35),
}
LARGE, SMALL = 0.2, 0.13


class Shape(NamedTuple):
    """A shape; `x`, `y` of its centre and `radius` are in tiles."""

    kind: Kind
    colour: str
    x: float
    y: float
    radius: float


class Example(NamedTuple):
    """A picture, its (columns, rows) in tiles, and a question about it."""

    name: str
    size: tuple[int, int]
    shapes: Sequence[Shape]
    question: str


EXAMPLES = (
    Example(
        "one-tile",
        (1, 1),
        (Shape("circle", "red", 0.25, 0.25, LARGE), Shape("square", "blue", 0.75, 0.75, SMALL)),
        "what colour is the circle?",
    ),
    Example(
        "two-beside",
        (2, 1),
        (
            Shape("triangle", "green", 0.25, 0.25, LARGE),
            Shape("circle", "yellow", 1.75, 0.75, LARGE),
        ),
        "is there a triangle?",
    ),
    Example(
        "two-stacked",
        (1, 2),
        (
            Shape("square", "purple", 0.75, 0.25, LARGE),
            Shape("square", "black", 0.25, 1.25, SMALL),
            Shape("triangle", "red", 0.75, 1.75, SMALL),
        ),
        "how many squares are there?",
    ),
    Example(
        "four-tiles",
        (2, 2),
        (
            Shape("circle", "blue", 0.25, 0.75, LARGE),
            Shape("triangle", "yellow", 1.75, 0.25, LARGE),
            Shape("square", "green", 0.75, 1.75, SMALL),
            Shape("circle", "red", 1.25, 1.25, LARGE),
        ),
        "what shape is at the top right?",
    ),
)


def write_examples(folder: Path, tile_size_px: int) -> list[Path]:
    """Draw `EXAMPLES` for tiles of this size into a folder, as PNG."""
    paths = []
    for example in EXAMPLES:
        path = folder / f"{example.name}.png"
        draw_example(example, tile_size_px).save(path)
        paths.append(path)
    return paths


def draw_example(example: Example, tile_size_px: int) -> Image.Image:
    """Draw an example, its edges smooth."""
    unit = tile_size_px * SMOOTHING
    columns, rows = example.size
    picture = Image.new("RGB", (columns * unit, rows * unit), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for kind, colour, *places in example.shapes:
        x, y, r = (place * unit for place in places)
        paint = COLOURS[colour]
        if kind == "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=paint)
        elif kind == "square":
            half = 0.9 * r
            draw.rectangle((x - half, y - half, x + half, y + half), fill=paint)
        else:
            draw.polygon(((x - r, y + 0.9 * r), (x + r, y + 0.9 * r), (x, y - r)), fill=paint)
    return picture.reduce(SMOOTHING)
