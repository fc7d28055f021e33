"""Rendered scenes of coloured shapes: a small world in which every answer is known.

A scene has up to four shapes, one in each quarter of the picture at most, so that shapes never
overlap and a place ("top left") is never in doubt. It lies near the centre of a cell half a tile
wide, so that a patch of that size holds a shape whole. Pictures have the proportions of one, two
(side by side or stacked) or four tiles; shapes keep their size in pixels.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self, TypeVar, get_args

from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field, model_validator

Kind = Literal["circle", "square", "triangle"]
Colour = Literal["red", "green", "blue", "yellow", "purple", "black"]
Size = Literal["small", "large"]
Format = Literal["square", "wide", "tall", "large"]
QuestionType = Literal["existence", "colour", "shape", "count", "place", "relation", "comparison"]

KINDS: tuple[Kind, ...] = get_args(Kind)
COLOURS: tuple[Colour, ...] = get_args(Colour)
SIZES: tuple[Size, ...] = get_args(Size)
QUESTION_TYPES: tuple[QuestionType, ...] = get_args(QuestionType)

PAINT: dict[Colour, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (35, 155, 60),
    "blue": (40, 85, 220),
    "yellow": (240, 205, 30),
    "purple": (155, 45, 175),
    "black": (35, 35, 35),
}
PAINT_JITTER = 12
# Shapes lie in cells half a tile wide, this far off their centres at most; as fractions of a tile.
JITTER = 0.03
# Radii as fractions of a tile.
RADII: dict[Size, tuple[float, float]] = {"small": (0.12, 0.14), "large": (0.19, 0.21)}
# (columns, rows) in tiles.
CANVASES: dict[Format, tuple[int, int]] = {
    "square": (1, 1),
    "wide": (2, 1),
    "tall": (1, 2),
    "large": (2, 2),
}
# (column, row) of the quarters in reading order.
QUARTERS = ((0, 0), (1, 0), (0, 1), (1, 1))
SUPERSAMPLING = 4

T = TypeVar("T")


class SceneConfig(BaseModel):
    """What scenes look like and what is asked about them.

    num_shapes_weights: how often a scene has 1, 2, 3 and 4 shapes; need not sum to 1.
    format_weights: how often pictures are one tile (`square`), two tiles beside each other
        (`wide`) or stacked (`tall`), or two by two (`large`); weights need not sum to 1.
    questions_per_type: how many different questions of each type a scene gets, where it has as
        many to ask.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kinds: tuple[Kind, ...] = Field(default=KINDS, min_length=2)
    colours: tuple[Colour, ...] = Field(default=COLOURS, min_length=2)
    num_shapes_weights: tuple[float, float, float, float] = (1, 1, 1, 1)
    tile_size_px: int = Field(default=48, ge=24)
    format_weights: dict[Format, float] = {"square": 0.4, "wide": 0.2, "tall": 0.2, "large": 0.2}
    questions_per_type: dict[QuestionType, int] = dict.fromkeys(QUESTION_TYPES, 2)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, weights in (
            ("num_shapes_weights", self.num_shapes_weights),
            ("format_weights", tuple(self.format_weights.values())),
        ):
            if min(weights, default=0) < 0 or not sum(weights):
                raise ValueError(f"{name} need one positive weight and no negative one")
        return self


DEFAULT_SCENES = SceneConfig()


@dataclass(frozen=True)
class Shape:
    """One shape; `x_px` and `y_px` are its centre, `paint` its exact RGB."""

    kind: Kind
    colour: Colour
    size: Size
    x_px: float
    y_px: float
    radius_px: float
    paint: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """Shapes in reading order on a light background, whose texture `texture_seed` decides."""

    shapes: tuple[Shape, ...]
    width_px: int
    height_px: int
    texture_seed: int

    def place(self, shape: Shape) -> str:
        """The quarter that holds a shape: `top left`, `top right`, `bottom left`, ..."""
        row = "top" if shape.y_px < self.height_px / 2 else "bottom"
        column = "left" if shape.x_px < self.width_px / 2 else "right"
        return f"{row} {column}"


def make_scene(rng: random.Random, config: SceneConfig = DEFAULT_SCENES) -> Scene:
    """Draw a scene; the same `rng` state gives the same scene."""
    formats = list(config.format_weights)
    (chosen,) = rng.choices(formats, [config.format_weights[name] for name in formats])
    columns, rows = CANVASES[chosen]
    width, height = columns * config.tile_size_px, rows * config.tile_size_px
    (num_shapes,) = rng.choices(range(1, 5), config.num_shapes_weights)
    kinds = _draw_values(rng, config.kinds, num_shapes)
    colours = _draw_values(rng, config.colours, num_shapes)
    sizes = _draw_values(rng, SIZES, num_shapes)
    quarters = sorted(rng.sample(range(4), num_shapes))
    shapes = []
    for index, quarter in enumerate(quarters):
        column, row = QUARTERS[quarter]
        radius = config.tile_size_px * rng.uniform(*RADII[sizes[index]])
        shapes.append(
            Shape(
                kind=kinds[index],
                colour=colours[index],
                size=sizes[index],
                x_px=_coordinate(rng, column, width / 2, config.tile_size_px),
                y_px=_coordinate(rng, row, height / 2, config.tile_size_px),
                radius_px=radius,
                paint=_vary(rng, PAINT[colours[index]]),
            )
        )
    return Scene(tuple(shapes), width, height, rng.getrandbits(32))


def render(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB picture, edges smoothed."""
    picture = _background(scene)
    for shape in scene.shapes:
        left, top = int(shape.x_px - shape.radius_px), int(shape.y_px - shape.radius_px)
        mask = _mask(shape, shape.x_px - left, shape.y_px - top)
        picture.paste(shape.paint, (left, top), mask)
    return picture


def caption(scene: Scene) -> str:
    """Name every shape in reading order: size, colour, kind and place."""
    return _enumerate(
        f"a {shape.size} {shape.colour} {shape.kind} at the {scene.place(shape)}"
        for shape in scene.shapes
    )


def colours_caption(scene: Scene) -> str:
    """Name every shape's colour and place, in reading order."""
    return _enumerate(f"{shape.colour} at the {scene.place(shape)}" for shape in scene.shapes)


def kinds_caption(scene: Scene) -> str:
    """Name every shape's kind and place, in reading order."""
    return _enumerate(f"a {shape.kind} at the {scene.place(shape)}" for shape in scene.shapes)


def _enumerate(phrases: Iterable[str]) -> str:
    *others, last = phrases
    return f"{', '.join(others)} and {last}" if others else last


def _draw_values(rng: random.Random, values: tuple[T, ...], count: int) -> list[T]:
    """Draw `count` values, half of the time out of one or two, so that repetition is common."""
    palette = rng.sample(values, rng.randint(1, 2)) if rng.random() < 0.5 else values
    return [rng.choice(palette) for _ in range(count)]


def _coordinate(rng: random.Random, quarter: int, quarter_px: float, tile_size_px: int) -> float:
    """A coordinate near the centre of one of the quarter's cells."""
    cell_px = tile_size_px / 2
    cell = rng.randrange(round(quarter_px / cell_px))
    jitter = rng.uniform(-JITTER, JITTER) * tile_size_px
    return quarter * quarter_px + (cell + 0.5) * cell_px + jitter


def _vary(rng: random.Random, paint: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = (
        min(255, max(0, value + rng.randint(-PAINT_JITTER, PAINT_JITTER))) for value in paint
    )
    return red, green, blue


def _background(scene: Scene) -> Image.Image:
    """A light, slightly uneven background: a 4x4 grid of shades, enlarged smoothly."""
    rng = random.Random(scene.texture_seed)
    base = [rng.randint(215, 245) for _ in range(3)]
    shades = bytes(base[i % 3] + rng.randint(-8, 8) for i in range(4 * 4 * 3))
    grid = Image.frombytes("RGB", (4, 4), shades)
    return grid.resize((scene.width_px, scene.height_px), Image.Resampling.BICUBIC)


def _mask(shape: Shape, x_px: float, y_px: float) -> Image.Image:
    """Coverage of a shape with centre (x_px, y_px): an 8-bit mask just large enough."""
    side = int(2 * shape.radius_px) + 3
    mask = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
    draw = ImageDraw.Draw(mask)
    x, y, r = (value * SUPERSAMPLING for value in (x_px, y_px, shape.radius_px))
    if shape.kind == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    elif shape.kind == "square":
        half = 0.9 * r  # about the area of the circle
        draw.rectangle((x - half, y - half, x + half, y + half), fill=255)
    else:
        draw.polygon(((x - r, y + 0.9 * r), (x + r, y + 0.9 * r), (x, y - r)), fill=255)
    return mask.reduce(SUPERSAMPLING)
