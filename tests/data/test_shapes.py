import random

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from data.shapes import (
    CANVASES,
    KINDS,
    PAINT,
    Scene,
    SceneConfig,
    Shape,
    caption,
    colours_caption,
    kinds_caption,
    make_scene,
    render,
)


def scenes(count: int, config: SceneConfig) -> list[Scene]:
    return [make_scene(random.Random(f"test/{i}"), config) for i in range(count)]


def one_shape(**changes) -> Scene:
    values = dict(
        kind="square",
        colour="red",
        size="large",
        x_px=12.0,
        y_px=30.0,
        radius_px=10.0,
        paint=PAINT["red"],
    )
    return Scene((Shape(**{**values, **changes}),), 48, 48, texture_seed=1)


def test_shapes_lie_inside_the_picture_and_never_overlap() -> None:
    for scene in scenes(300, SceneConfig()):
        for i, a in enumerate(scene.shapes):
            assert a.radius_px < a.x_px < scene.width_px - a.radius_px
            assert a.radius_px < a.y_px < scene.height_px - a.radius_px
            for b in scene.shapes[i + 1 :]:
                apart = max(abs(a.x_px - b.x_px), abs(a.y_px - b.y_px))
                assert apart > a.radius_px + b.radius_px


def test_no_two_shapes_share_a_place() -> None:
    for scene in scenes(300, SceneConfig(num_shapes_weights=(0, 1, 1, 1))):
        places = [scene.place(shape) for shape in scene.shapes]
        assert len(set(places)) == len(places)


def test_picture_formats_follow_the_weights() -> None:
    config = SceneConfig(tile_size_px=32, format_weights={"wide": 1.0, "large": 3.0})
    sizes = [(s.width_px, s.height_px) for s in scenes(400, config)]
    assert set(sizes) == {(64, 32), (64, 64)}
    assert 0.68 < sizes.count((64, 64)) / len(sizes) < 0.82


def test_every_format_is_drawn_at_its_size() -> None:
    for name, (columns, rows) in CANVASES.items():
        (scene,) = scenes(1, SceneConfig(format_weights={name: 1.0}))
        assert render(scene).size == (48 * columns, 48 * rows)


def test_number_of_shapes_keeps_within_its_bounds() -> None:
    counts = {
        len(scene.shapes) for scene in scenes(200, SceneConfig(num_shapes_weights=(0, 1, 1, 0)))
    }
    assert counts == {2, 3}


def test_a_shape_is_painted_in_its_colour_on_a_light_background() -> None:
    pixels = np.asarray(render(one_shape()))
    assert tuple(pixels[30, 12]) == PAINT["red"]
    assert pixels[5, 40].min() > 190


@pytest.mark.parametrize("kind", KINDS)
def test_edges_are_smoothed_and_kinds_fill_their_own_share(kind) -> None:
    picture = render(one_shape(kind=kind, paint=(0, 0, 0))).convert("L")
    pixels = np.asarray(picture)[15:45, 0:27].astype(int)
    # Area in units of the squared radius: pi, (2 * 0.9)^2, and half of 2 * 1.9.
    area = ((225 - pixels).clip(0) / 225).sum() / 10**2
    assert area == pytest.approx({"circle": 3.14, "square": 3.24, "triangle": 1.9}[kind], abs=0.25)
    assert ((pixels > 40) & (pixels < 180)).any()


def test_the_same_seed_gives_the_same_scene_and_picture() -> None:
    first, again = (make_scene(random.Random(3)) for _ in range(2))
    assert first == again
    assert render(first).tobytes() == render(again).tobytes()
    assert make_scene(random.Random(4)) != first


def test_caption_names_every_shape_in_reading_order() -> None:
    shapes = (
        *one_shape(y_px=12.0).shapes,
        *one_shape(kind="circle", colour="blue", size="small", x_px=36.0, y_px=12.0).shapes,
        *one_shape(kind="triangle", x_px=36.0, y_px=36.0).shapes,
    )
    assert caption(Scene(shapes, 48, 48, 0)) == (
        "a large red square at the top left, a small blue circle at the top right "
        "and a large red triangle at the bottom right"
    )


def test_partial_captions_name_every_place_with_one_attribute() -> None:
    shapes = (
        *one_shape(y_px=12.0).shapes,
        *one_shape(kind="circle", colour="blue", x_px=36.0, y_px=36.0).shapes,
    )
    scene = Scene(shapes, 48, 48, 0)
    assert colours_caption(scene) == "red at the top left and blue at the bottom right"
    assert kinds_caption(scene) == "a square at the top left and a circle at the bottom right"


def test_render_returns_an_rgb_picture() -> None:
    picture = render(one_shape())
    assert isinstance(picture, Image.Image)
    assert picture.mode == "RGB"


@pytest.mark.parametrize(
    "settings",
    [
        {"num_shapes_weights": (0, 0, 0, 0)},
        {"num_shapes_weights": (1, 1, 1, -1)},
        {"format_weights": {}},
        {"format_weights": {"square": -1.0}},
        {"colour": ["red"]},
    ],
)
def test_contradictory_settings_are_refused(settings) -> None:
    with pytest.raises(ValidationError):
        SceneConfig(**settings)
