"""Our tiling of pictures against transformers' Mllama image processors, on one core.

transformers has two, on torchvision and on Pillow; the faster one on a picture is the peer. They
are told neither to rescale nor to normalise, so that the values that they give are ours: what is
left is the size that each picture is resized to, the tiles, and their own padding to
`max_num_tiles` in float32, which their model needs and ours does not.

Four settings: `exact`, the pictures of `vlm ask` and of evaluation; `same bits`, those beside the
processor on Pillow, which gives them bit for bit; `draft`, the pictures of training; `files`, those
from the bytes of a JPEG, with its decoding, on both sides.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.mllama.image_processing_mllama import MllamaImageProcessor
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from encoders.tiling import TiledImage, place, tile_draft, tile_picture
from eval.speed.harness import Row, rate_row, time_in_turn
from eval.speed.photos import encode_jpeg, make_photo
from vlm.errors import UserError
from vlm.images import EXTENSIONS, read_draft, read_image

# Of 255 steps: 2 for another resizing kernel; on average 1.5 for JPEG's reduced scales, whose
# pixels are means over squares. A picture that lies half a pixel elsewhere is off by more.
MOST_STEPS, MEAN_STEPS = 2.0, 1.5
BACKENDS: Mapping[str, Any] = {
    "torchvision": MllamaImageProcessor,
    "pillow": MllamaImageProcessorPil,
}
SAME_BITS = "pillow"


@dataclass(frozen=True)
class Tiling:
    """Both sides' settings: tiles of so many pixels, at most so many of them."""

    tile_size_px: int
    max_num_tiles: int

    def exact(self, image: Image.Image) -> TiledImage:
        """What a model is asked with."""
        return tile_picture(image, self.tile_size_px, self.max_num_tiles)

    def draft(self, image: Image.Image) -> TiledImage:
        """What a model is trained on, of a decoded picture."""
        size = image.height, image.width
        return tile_draft(image, size, self.tile_size_px, self.max_num_tiles)

    def file_draft(self, content: bytes) -> TiledImage:
        """What a model is trained on, of a file."""
        tiles = self.tile_size_px, self.max_num_tiles
        picture = read_draft(content, lambda height, width: place(height, width, *tiles)[1])
        return tile_draft(
            picture.image, picture.full_size_px, *tiles, picture.extent_px, picture.turn
        )

    def processors(self) -> dict[str, Any]:
        """transformers' image processors with the same settings."""
        size = {"height": self.tile_size_px, "width": self.tile_size_px}
        settings = {"size": size, "max_image_tiles": self.max_num_tiles}
        plain = {"do_rescale": False, "do_normalize": False}
        return {name: kind(**settings, **plain) for name, kind in BACKENDS.items()}


class Comparison:
    """One group of pictures, as files and decoded, and both sides on it."""

    def __init__(self, files: Sequence[bytes], tiling: Tiling) -> None:
        self.files = files
        self.tiling = tiling
        self.pictures = [read_image(content) for content in files]
        self.processors = tiling.processors()

    def check(self) -> str:
        """Say in one line how closely the sides agree.

        Raises:
            RuntimeError: another canvas, or pixels too far apart.
        """
        most = 0.0
        means = []
        for content, image in zip(self.files, self.pictures, strict=True):
            exact, draft = self.tiling.exact(image), self.tiling.draft(image)
            for processor in self.processors.values():
                for ours in (exact, draft):
                    most = max(most, _largest_difference(ours, processor, image))
            drafted = self.tiling.file_draft(content).tiles.float()
            means.append((drafted - exact.tiles.float()).abs().mean().item())
        mean = float(np.mean(means))
        told = f"pixels differ by at most {most:g} of 255 steps, a JPEG's drafts by {mean:.3f}"
        if most > MOST_STEPS or mean > MEAN_STEPS:
            raise RuntimeError(f"{told} on average, allowed: {MOST_STEPS:g} and {MEAN_STEPS:g}")
        return f"{told} on average"

    def measure(self, repeats: int) -> dict[str, tuple[float, float]]:
        """Seconds of ours and of the faster peer for the whole group, by setting.

        `same bits` has one peer alone: the processor whose every pixel is that of `exact`.
        """
        settings: dict[str, tuple[Callable[[Any], object], Sequence[Any], bool, str | None]] = {
            "same bits": (self.tiling.exact, self.pictures, False, SAME_BITS),
            "exact": (self.tiling.exact, self.pictures, False, None),
            "draft": (self.tiling.draft, self.pictures, False, None),
            "files": (self.tiling.file_draft, self.files, True, None),
        }
        measured = {}
        for setting, (ours, inputs, encoded, only) in settings.items():
            sides = []
            for name, processor in self.processors.items():
                if only not in (None, name):
                    continue
                peer = partial(_process_file if encoded else _process, processor)
                each = partial(_for_all, ours, inputs), partial(_for_all, peer, inputs)
                sides.append(time_in_turn(*each, torch.device("cpu"), repeats))
            measured[setting] = min(sides, key=lambda seconds: seconds[1])
        return measured


def compare_preprocessing(
    groups: Mapping[str, Sequence[bytes]], tiling: Tiling, repeats: int
) -> tuple[list[Row], list[str]]:
    """Measure both sides on each group of picture files and on all of them.

    Returns:
        rows in pictures per second, and a line for each group that says how closely they agree.
    """
    agreements, rows = [], []
    total: dict[str, tuple[float, float]] = {}
    num_pictures = sum(len(files) for files in groups.values())
    for name, files in groups.items():
        comparison = Comparison(files, tiling)
        agreements.append(f"{name}: {comparison.check()}")
        for setting, (ours_s, peer_s) in comparison.measure(repeats).items():
            rows.append(_row(f"{setting} {name}", len(files), ours_s, peer_s))
            before = total.get(setting, (0.0, 0.0))
            total[setting] = before[0] + ours_s, before[1] + peer_s
    if len(groups) > 1:
        rows += [_row(f"{setting} all", num_pictures, *both) for setting, both in total.items()]
    return rows, agreements


def made_groups(sizes_px: Sequence[tuple[int, int]]) -> dict[str, list[bytes]]:
    """JPEGs of each (width, height), two of them: one lying, one standing."""
    return {
        f"{width}x{height}": [
            encode_jpeg(make_photo(width, height, seed=0)),
            encode_jpeg(make_photo(height, width, seed=1)),
        ]
        for width, height in sizes_px
    }


def folder_group(folder: Path, limit: int) -> dict[str, list[bytes]]:
    """The first pictures of a folder, by name.

    Raises:
        UserError: it holds none.
    """
    endings = {f".{extension}" for extension in (*EXTENSIONS.values(), "jpeg", "tiff")}
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in endings)
    if not paths:
        raise UserError(f"--images is {folder}, needed: a folder with pictures in it")
    return {folder.name: [path.read_bytes() for path in paths[:limit]]}


def _row(setting: str, count: int, ours_s: float, peer_s: float) -> Row:
    return rate_row("preprocess", setting, count, ours_s, peer_s, unit="pictures/s")


def _largest_difference(ours: TiledImage, processor: Any, image: Image.Image) -> float:
    theirs = processor(image, return_tensors="pt")
    if theirs["aspect_ratio_ids"].item() != ours.aspect_ratio_id:
        raise RuntimeError(f"the sides chose different canvases for {image.width}x{image.height}")
    pixels = theirs["pixel_values"][0, 0, : len(ours.tiles)]
    return (ours.tiles.float() - pixels).abs().max().item()


def _for_all(tile: Callable[[Any], object], inputs: Sequence[Any]) -> None:
    for item in inputs:
        tile(item)


def _process(processor: Any, image: Image.Image) -> object:
    return processor(image, return_tensors="pt")


def _process_file(processor: Any, content: bytes) -> object:
    return _process(processor, Image.open(BytesIO(content)).convert("RGB"))
