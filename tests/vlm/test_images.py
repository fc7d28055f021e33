import io
import json
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm.images import (
    EXTENSIONS,
    ORIENTATION_TAG,
    ImageError,
    image_extension,
    read_draft,
    read_image,
)

ODD_IMAGES = Path(__file__).parents[2].parent / "shared/data/odd-images"

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, format_name: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def pixels(source: object) -> list[list[tuple[int, int, int]]]:
    image = read_image(source)
    assert image.mode == "RGB"
    return [[tuple(map(int, pixel)) for pixel in row] for row in np.asarray(image)]


def upright_picture() -> np.ndarray:
    """(2, 3, 3): every pixel another colour, so that any turn or flip shows."""
    return (np.arange(18, dtype=np.uint8) * 14).reshape(2, 3, 3)


# How a picture u is stored for each orientation: EXIF 2.32 says on which side of the upright
# picture the stored first row and first column lie.
STORED = {
    1: lambda u: u,  # row at the top, column at the left
    2: lambda u: u[:, ::-1],  # top, right
    3: lambda u: u[::-1, ::-1],  # bottom, right
    4: lambda u: u[::-1],  # bottom, left
    5: lambda u: u.swapaxes(0, 1),  # left, top
    6: lambda u: u.swapaxes(0, 1)[::-1],  # right, top
    7: lambda u: u.swapaxes(0, 1)[::-1, ::-1],  # right, bottom
    8: lambda u: u.swapaxes(0, 1)[:, ::-1],  # left, bottom
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "TIFF"])
def test_every_exif_orientation_comes_out_upright(orientation: int, format_name: str) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright_picture())))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format_name == "WEBP" else {}
    content = encode(stored, format_name, exif=exif, **options)
    assert np.array_equal(np.asarray(read_image(content)), upright_picture())


def test_orientation_of_a_jpeg_is_applied_once_however_often_it_is_read() -> None:
    halves = Image.new("RGB", (64, 32), RED)
    halves.paste(BLUE, (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6
    once = read_image(encode(halves, "JPEG", quality=95, exif=exif))
    assert once.size == (32, 64)
    assert np.abs(np.asarray(once)[8, 16].astype(int) - BLUE).max() < 12  # JPEG's rounding
    assert np.array_equal(np.asarray(read_image(once)), np.asarray(once))
    assert not once.info


def test_damaged_exif_counts_as_upright() -> None:
    picture = Image.fromarray(upright_picture())
    content = encode(picture, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert np.array_equal(np.asarray(read_image(content)), upright_picture())


def test_cmyk_becomes_rgb_also_from_an_inverted_adobe_jpeg() -> None:
    inks = Image.new("CMYK", (32, 16), (255, 0, 0, 0))
    inks.paste((0, 255, 255, 51), (16, 0, 32, 16))
    assert pixels(encode(inks, "TIFF"))[0][0] == (0, 255, 255)
    assert pixels(encode(inks, "TIFF"))[0][31] == (204, 0, 0)
    adobe = encode(inks, "JPEG", quality=95)
    assert b"Adobe" in adobe
    row = np.asarray(read_image(adobe))[8].astype(int)
    assert np.abs(row[4] - (0, 255, 255)).max() < 8 and np.abs(row[28] - (204, 0, 0)).max() < 8


def test_alpha_is_composited_on_white() -> None:
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 51)])
    assert pixels(encode(rgba, "PNG")) == [[RED, WHITE, (204, 204, 204)]]
    grey = Image.new("LA", (2, 1))
    grey.putdata([(10, 255), (10, 0)])
    assert pixels(encode(grey, "PNG")) == [[(10, 10, 10), WHITE]]


def test_transparent_colours_become_white() -> None:
    palette = Image.new("P", (3, 1))
    palette.putpalette([*RED, *GREEN, *BLUE])
    palette.putdata([0, 1, 2])
    assert pixels(encode(palette, "PNG")) == [[RED, GREEN, BLUE]]
    assert pixels(encode(palette, "PNG", transparency=1)) == [[RED, WHITE, BLUE]]
    assert pixels(encode(palette, "PNG", transparency=bytes([255, 0, 51]))) == [
        [RED, WHITE, (204, 204, 255)]
    ]
    rgb = Image.new("RGB", (2, 1), RED)
    rgb.putpixel((1, 0), GREEN)
    assert pixels(encode(rgb, "PNG", transparency=GREEN)) == [[RED, WHITE]]


def test_sixteen_bit_grey_is_scaled_to_eight() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    expected = [[(v, v, v) for v in (0, 0, 1, 1, 128, 255)]]
    little = Image.fromarray(values)
    assert pixels(encode(little, "PNG")) == expected
    assert pixels(encode(little, "TIFF")) == expected
    pgm = b"P5 6 1 65535\n" + values.astype(">u2").tobytes()
    assert pixels(pgm) == expected
    assert pixels(Image.frombytes("I;16B", (6, 1), values.astype(">u2").tobytes())) == expected
    seen_through = encode(little, "PNG", transparency=128)
    assert pixels(seen_through) == [[(0, 0, 0), WHITE, *expected[0][2:]]]


def test_bilevel_and_grey_pictures_become_rgb() -> None:
    assert pixels(encode(Image.new("1", (1, 1), 1), "PNG")) == [[WHITE]]
    assert pixels(encode(Image.new("L", (1, 1), 77), "PNG")) == [[(77, 77, 77)]]


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(format_name: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    content = encode(frames[0], format_name, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(content)).n_frames == 3
    assert pixels(content) == [[RED] * 4] * 4


@pytest.mark.parametrize("size", [(1, 1), (1, 30_000), (30_000, 1)])
def test_extreme_shapes_are_read(size: tuple[int, int]) -> None:
    assert read_image(encode(Image.new("RGB", size, GREEN), "PNG")).size == size


def test_a_pil_image_is_left_as_it_was() -> None:
    image = Image.fromarray(upright_picture())
    image.getexif()[0x0112] = 6
    image.info["note"] = "kept"
    result = read_image(image)
    assert result.size == (2, 3) and image.size == (3, 2) and image.info == {"note": "kept"}


def test_path_string_and_bytes_read_alike(tmp_path: Path) -> None:
    content = encode(Image.fromarray(upright_picture()), "PNG")
    (tmp_path / "a.png").write_bytes(content)
    path = tmp_path / "a.png"
    assert pixels(path) == pixels(str(path)) == pixels(content)


def png_header(width_px: int, height_px: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT"


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    read_image(encode(Image.new("L", (1, 1)), "PNG"))  # loads Pillow's formats
    start = time.perf_counter()
    with pytest.raises(ImageError, match="too many pixels"):
        read_image(png_header(100_000, 100_000))
    assert time.perf_counter() - start < 0.1
    content = encode(Image.new("L", (11, 10)), "PNG")
    assert read_image(content, max_pixels=110).size == (11, 10)
    with pytest.raises(ImageError, match="11 x 10 is more than the limit of 109"):
        read_image(content, max_pixels=109)


NOT_PICTURES = {
    "empty": b"",
    "html": b"<!doctype html><title>404</title>",
    "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
    # Pillow would hand this to Ghostscript.
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
}


@pytest.mark.parametrize("name", NOT_PICTURES)
def test_what_is_no_picture_is_refused_without_naming_the_host(name: str) -> None:
    with pytest.raises(ImageError, match="not a picture, or in none of the formats") as caught:
        read_image(NOT_PICTURES[name])
    assert "/" not in str(caught.value) and "object at" not in str(caught.value)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_a_picture_cut_in_half_is_refused(format_name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = encode(Image.fromarray(noise), format_name)
    assert read_image(content).size == (64, 64)
    with pytest.raises(ImageError):
        read_image(content[: len(content) // 2])


def test_damage_after_the_last_pixel_loses_nothing() -> None:
    content = encode(Image.fromarray(upright_picture()), "PNG")
    end = content.index(b"IEND") - 4
    cut_note = content[:end] + struct.pack(">I", 1000) + b"tEXtComment"
    assert np.array_equal(np.asarray(read_image(cut_note)), upright_picture())


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(ImageError, match="save it as 8 or 16 bit"):
        read_image(encode(Image.new("F", (2, 2)), "TIFF"))


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png: No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match=f"{tmp_path.name}: Is a directory"):
        read_image(tmp_path)


def test_the_extension_comes_from_the_content() -> None:
    image = Image.new("RGB", (2, 2))
    assert image_extension(encode(image, "JPEG")) == "jpg"
    assert image_extension(encode(image, "MPO", save_all=True, append_images=[image])) == "jpg"
    for format_name in ("PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000"):
        assert image_extension(encode(image, format_name)) == EXTENSIONS[format_name]
    with pytest.raises(ImageError, match="not a picture"):
        image_extension(b"GIF or not")


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata in some
def test_odd_pictures_are_read_or_refused_as_their_manifest_says() -> None:
    if not ODD_IMAGES.is_dir():
        pytest.skip("../shared/data/odd-images is not there")
    surprises = []
    for line in (ODD_IMAGES / "manifest.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        try:
            image = read_image(ODD_IMAGES / row["file"])
            assert image.mode == "RGB"
            readable = True
            whole = read_draft((ODD_IMAGES / row["file"]).read_bytes(), lambda *size: size)
            turned = whole.image if whole.turn is None else whole.image.transpose(whole.turn)
            assert turned.tobytes() == image.tobytes(), row["file"]
        except ImageError:
            readable = False
        if readable != (row.get("load") == "ok"):
            surprises.append(row["file"])
    assert not surprises


def photo(width_px: int, height_px: int) -> Image.Image:
    """Smooth colours that differ from corner to corner."""
    across = np.linspace(0, 255, width_px)[None, :].repeat(height_px, 0)
    down = np.linspace(0, 255, height_px)[:, None].repeat(width_px, 1)
    return Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8))


@pytest.mark.parametrize("orientation", [None, *STORED])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_draft_is_the_picture_at_the_smallest_scale_that_suffices(
    mode: str, orientation: int | None
) -> None:
    upright = np.asarray(photo(101, 60))
    stored = np.ascontiguousarray(STORED[orientation or 1](upright))
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION_TAG] = orientation
    content = encode(Image.fromarray(stored).convert(mode), "JPEG", quality=95, exif=exif)
    full = read_image(content)
    for needed, expected in (
        ((60, 101), (101, 60)),  # nothing may be lost
        ((31, 51), (101, 60)),
        ((30, 50), (51, 30)),  # a half
        ((16, 25), (51, 30)),
        ((15, 25), (26, 15)),
        ((1, 1), (13, 8)),  # an eighth, the least that JPEG has
        ((500, 500), (101, 60)),
    ):
        asked: list[tuple[int, int]] = []

        def needs(
            *size: int, asked: list[tuple[int, int]] = asked, needed: tuple[int, int] = needed
        ) -> tuple[int, int]:
            asked.append(size)
            return needed

        draft = read_draft(content, needs)
        assert asked == [(60, 101)] == [draft.full_size_px] and draft.image.mode == "RGB"
        shown = draft.image if draft.turn is None else draft.image.transpose(draft.turn)
        assert shown.size == expected
        scale = round(101 / expected[0])
        sides = [side * scale for side in draft.extent_px]
        assert sides == list(stored.shape[:2])
        if expected == full.size:
            assert np.array_equal(np.asarray(shown), np.asarray(full))
        # The colours stay where they are: a turn or a flip would move them by up to 255 steps. The
        # steepest gradient has 34 steps to a pixel of an eighth, of which the last may be a part.
        small = np.asarray(full.resize(shown.size, Image.Resampling.BOX)).astype(int)
        assert np.abs(np.asarray(shown) - small).max() <= 40


@pytest.mark.parametrize("format_name", ["PNG", "WEBP", "TIFF", "GIF"])
def test_formats_without_reduced_scales_are_read_in_full(format_name: str) -> None:
    options = {"lossless": True} if format_name == "WEBP" else {}
    content = encode(photo(64, 32).convert("RGBA"), format_name, **options)
    draft = read_draft(content, lambda height, width: (1, 1))
    assert draft.full_size_px == (32, 64)
    assert np.array_equal(np.asarray(draft.image), np.asarray(read_image(content)))


def test_a_draft_is_refused_as_the_picture_is() -> None:
    content = encode(photo(64, 64), "JPEG")
    for wrong in (content[:300], content[:-200], b"", png_header(100_000, 100_000)):
        with pytest.raises(ImageError):
            read_draft(wrong, lambda height, width: (8, 8))
    with pytest.raises(ImageError, match="64 x 64 is more than the limit of 4095"):
        read_draft(content, lambda height, width: (8, 8), max_pixels=4095)
