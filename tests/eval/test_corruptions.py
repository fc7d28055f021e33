"""Damaged pictures: golden properties of every kind, on a rendered photograph-like picture."""

from io import BytesIO
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from eval.conditions import CORRUPTIONS, SEVERITIES, Corruption, CorruptionKind, read_corruptions
from eval.corruptions import corrupt, corrupted
from eval.items import Item, Picture
from vlm.errors import UserError
from vlm.images import read_image


def encode(image: Image.Image, file_format: str = "PNG") -> bytes:
    file = BytesIO()
    image.save(file, file_format)
    return file.getvalue()


def photo(width_px: int, height_px: int, seed: int = 0) -> bytes:
    """Soft light and a dozen objects with edges, in all colours but the extremes."""
    draw_from = np.random.default_rng(seed)
    image = Image.linear_gradient("L").resize((width_px, height_px)).convert("RGB")
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = draw_from.uniform(0, (width_px, height_px))
        radius = draw_from.uniform(0.05, 0.2) * min(width_px, height_px)
        colour = tuple(int(c) for c in draw_from.integers(20, 236, 3))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return encode(image.filter(ImageFilter.GaussianBlur(0.6)))


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(read_image(content), dtype=np.float64)


def psnr(content: bytes, reference: bytes) -> float:
    """Peak signal-to-noise ratio in decibels."""
    return 10 * np.log10(255**2 / np.mean((pixels(content) - pixels(reference)) ** 2))


PHOTO = photo(224, 224)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_more_severe_is_further_from_the_picture(kind: CorruptionKind) -> None:
    ratios = [psnr(corrupt(PHOTO, Corruption(kind=kind, severity=s)), PHOTO) for s in SEVERITIES]
    assert all(earlier > later for earlier, later in pairwise(ratios)), ratios
    assert 40 > ratios[0] and ratios[-1] > 3  # visible at once, and never another picture


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("size", [(61, 40), (5, 3), (1, 1)])
def test_sizes_are_kept(kind: CorruptionKind, size: tuple[int, int]) -> None:
    for severity in (1, 5):
        damaged = corrupt(photo(*size), Corruption(kind=kind, severity=severity))
        assert read_image(damaged).size == size


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_a_picture_is_always_damaged_alike(kind: CorruptionKind) -> None:
    config = Corruption(kind=kind, severity=2)
    assert corrupt(PHOTO, config, "a.png") == corrupt(PHOTO, config, "a.png")


@pytest.mark.parametrize("kind", ["noise", "shot_noise", "impulse_noise", "speckle_noise"])
def test_pictures_and_seeds_have_noise_of_their_own(kind: CorruptionKind) -> None:
    first = corrupt(PHOTO, Corruption(kind=kind, severity=2), "a.png")
    assert corrupt(PHOTO, Corruption(kind=kind, severity=2), "b.png") != first
    assert corrupt(PHOTO, Corruption(kind=kind, severity=2, seed=1), "a.png") != first


@pytest.mark.parametrize(("severity", "deviation"), [(1, 0.08), (2, 0.12)])
def test_noise_has_imagenet_cs_deviation(severity: int, deviation: float) -> None:
    grey = encode(Image.new("RGB", (200, 200), (128, 128, 128)))
    noisy = pixels(corrupt(grey, Corruption(kind="noise", severity=severity))) / 255
    # 120,000 draws: a standard error of 0.2 %; grey is four deviations from black and white.
    assert noisy.std() == pytest.approx(deviation, rel=0.01)


def test_shot_noise_is_poisson_noise() -> None:
    grey = encode(Image.new("RGB", (200, 200), (51, 51, 51)))  # 0.2
    noisy = pixels(corrupt(grey, Corruption(kind="shot_noise", severity=1))) / 255
    # Of 60 photons at white, 12 are expected: mean 0.2, variance 0.2 / 60. 120,000 draws.
    assert noisy.mean() == pytest.approx(0.2, rel=0.01)
    assert noisy.var() == pytest.approx(0.2 / 60, rel=0.02)


def test_impulses_hit_the_share_of_values_that_is_said() -> None:
    grey = encode(Image.new("RGB", (200, 200), (128, 128, 128)))
    noisy = pixels(corrupt(grey, Corruption(kind="impulse_noise", severity=5)))
    # Standard error 0.0013 of either share.
    assert (noisy == 0).mean() == pytest.approx(0.135, abs=0.005)
    assert (noisy == 255).mean() == pytest.approx(0.135, abs=0.005)
    assert set(np.unique(noisy)) == {0, 128, 255}


def test_blur_is_as_wide_as_a_gaussian_and_grows_with_the_picture() -> None:
    for side_px, severity, deviation_px in ((224, 2, 2.0), (448, 2, 4.0), (224, 5, 6.0)):
        image = Image.new("RGB", (side_px, side_px))
        image.paste((255, 255, 255), (side_px // 2, 0, side_px, side_px))
        blurred = pixels(corrupt(encode(image), Corruption(kind="blur", severity=severity)))[
            side_px // 2, :, 0
        ]
        # The slope of a blurred edge is the kernel; 8 bits and Pillow's boxes cost a few percent.
        kernel = np.diff(blurred)
        place = np.arange(len(kernel))
        mean = (kernel * place).sum() / kernel.sum()
        spread = ((kernel * (place - mean) ** 2).sum() / kernel.sum()) ** 0.5
        assert spread == pytest.approx(deviation_px, rel=0.06)


def test_brightness_keeps_the_hue_and_adds_to_the_largest_channel() -> None:
    content = encode(Image.new("RGB", (4, 4), (100, 50, 0)))
    bright = pixels(corrupt(content, Corruption(kind="brightness", severity=2)))[0, 0]
    # The value rises by 0.2 * 255 = 51, and the others in proportion.
    assert bright.tolist() == pytest.approx([151, 75.5, 0], abs=0.6)
    black = encode(Image.new("RGB", (4, 4)))
    assert pixels(corrupt(black, Corruption(kind="brightness", severity=2))).max() == 51


def test_contrast_draws_every_channel_to_its_mean() -> None:
    damaged = pixels(corrupt(PHOTO, Corruption(kind="contrast", severity=3)))
    wanted = 0.2 * pixels(PHOTO) + 0.8 * pixels(PHOTO).mean(axis=(0, 1))
    assert np.abs(damaged - wanted).max() <= 0.51  # rounding


def test_jpeg_is_the_file_that_pillow_writes() -> None:
    expected = BytesIO()
    read_image(PHOTO).save(expected, "JPEG", quality=15)
    assert corrupt(PHOTO, Corruption(kind="jpeg", severity=3)) == expected.getvalue()


def test_rotation_turns_about_the_centre_by_the_degrees_that_are_said() -> None:
    image = Image.new("RGB", (101, 101), (128, 128, 128))
    image.paste((255, 255, 255), (88, 48, 93, 53))  # 40 px right of the centre
    turned = pixels(corrupt(encode(image), Corruption(kind="rotation", severity=5)))[..., 0]
    bright = np.argwhere(turned > 200).mean(axis=0) - 50  # (down, right)
    assert np.hypot(*bright) == pytest.approx(40, abs=1)
    assert abs(np.degrees(np.arctan2(bright[0], bright[1]))) == pytest.approx(30, abs=1)


def test_an_oriented_photo_is_damaged_as_it_is_seen() -> None:
    image = read_image(photo(40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = BytesIO()
    image.save(file, "JPEG", exif=exif)
    damaged = corrupt(file.getvalue(), Corruption(kind="noise", severity=1))
    assert read_image(damaged).size == (20, 40)


def test_pictures_are_read_and_damaged_when_they_are_needed() -> None:
    reads = []

    def read() -> bytes:
        reads.append(1)
        return PHOTO

    item = Item("1", "what?", (Picture("a.png", read), Picture("b.png", read)))
    damaged = corrupted(item, Corruption(kind="blur", severity=3))
    assert not reads
    assert [image.name for image in damaged.images] == ["a.png", "b.png"]
    assert damaged.images[0].read() == corrupt(PHOTO, Corruption(kind="blur", severity=3), "a.png")
    assert len(reads) == 1
    assert corrupted(item, None) is item


def test_words_name_corruptions() -> None:
    assert read_corruptions("blur:3") == [Corruption(kind="blur", severity=3)]
    assert read_corruptions("blur:3,seed=7") == [Corruption(kind="blur", severity=3, seed=7)]
    assert [c.severity for c in read_corruptions("jpeg")] == [1, 2, 3, 4, 5]
    assert len(read_corruptions("all")) == 5 * len(CORRUPTIONS)
    assert [c.kind for c in read_corruptions("all:2")] == list(CORRUPTIONS)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("blurr:3", "blurr"),
        ("blur:6", "severity"),
        ("blur:x", "severity"),
        ("blur:3,sed=1", "sed"),
        ("blur:3,seed", "name=value"),
    ],
)
def test_wrong_words_are_named(words: str, part: str) -> None:
    with pytest.raises(UserError, match=part):
        read_corruptions(words)
