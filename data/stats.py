"""What is in a folder of shards, as figures: sizes, tiles, lengths, and how often each occurs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from data.charts import bars
from data.pack import Manifest
from data.schema import RawSample
from data.shards import read_folder
from encoders.tiling import TiledImage, choose_canvas
from vlm.chat.processor import Processor
from vlm.images import ImageError, image_extension, image_size

QUANTILES = {"median": 0.5, "p95": 0.95, "p99": 0.99}
# Stands for any picture where only the text of a chat is encoded.
_ANY_PICTURE = TiledImage(torch.empty(0), 1, (1, 1))


@dataclass(frozen=True)
class Ruler:
    """How pictures and texts are measured.

    tile_size_px, max_num_tiles: of the model that is to see the pictures.
    processor: counts tokens, the template's among them; None counts words, apart at blanks.
    """

    tile_size_px: int
    max_num_tiles: int
    processor: Processor | None = None

    @property
    def text_measure(self) -> tuple[str, str]:
        """Name and unit of a sample's length."""
        unit = "words" if self.processor is None else "tokens"
        return f"{unit} per sample", unit

    @property
    def tile_measure(self) -> tuple[str, str]:
        """Name and unit of a picture's tiles."""
        limit = f"{self.tile_size_px} px, at most {self.max_num_tiles}"
        return f"tiles per picture ({limit})", "tiles"

    def length(self, raw: RawSample) -> int:
        """The text of a sample, in tokens or words.

        Raises:
            UserError: the template refuses the chat.
        """
        messages = raw.sample.messages
        if self.processor is None:
            return sum(len(message.text.split()) for message in messages)
        pictures = [_ANY_PICTURE] * raw.sample.num_images
        return len(self.processor.encode(messages, pictures).input_ids)

    def num_tiles(self, width_px: int, height_px: int) -> int:
        """The tiles of a picture's canvas."""
        rows, columns = choose_canvas(height_px, width_px, self.tile_size_px, self.max_num_tiles)
        return rows * columns


@dataclass
class Measure:
    """How often each whole number occurs. unit: of the numbers."""

    name: str
    unit: str
    counts: Counter[int] = field(default_factory=Counter)

    @property
    def summary(self) -> dict[str, float]:
        """Number, total, mean, smallest, quantiles and largest; nothing of nothing."""
        number = self.counts.total()
        if not number:
            return {}
        total = sum(value * count for value, count in self.counts.items())
        values = sorted(self.counts)
        places = list(accumulate(self.counts[value] for value in values))
        quantiles = {
            name: next(v for v, place in zip(values, places, strict=True) if place >= q * number)
            for name, q in QUANTILES.items()
        }
        ends = {"min": values[0], **quantiles, "max": values[-1]}
        return {"number": number, "total": total, "mean": total / number, **ends}


@dataclass(frozen=True)
class FolderStats:
    """The figures of one folder of shards.

    measures: in the order in which they are shown.
    formats, types, sources: pictures by file format, answers by their type, samples by source.
    bad_pictures: those whose header cannot be read.
    """

    folder: Path
    manifest: Manifest
    measures: tuple[Measure, ...]
    formats: Counter[str]
    types: Counter[str]
    sources: Counter[str]
    bad_pictures: int

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON holds it; histograms as [from, to, count], `to` not included."""
        return {
            "folder": str(self.folder),
            "samples": self.manifest.num_samples,
            "pictures": self.manifest.num_images,
            "answers": self.manifest.num_turns,
            "shards": len(self.manifest.shards),
            "bytes": sum(entry.num_bytes for entry in self.manifest.shards),
            "rejects": self.manifest.num_rejects,
            "bad_pictures": self.bad_pictures,
            "data": self.manifest.sha256,
            "measures": {
                measure.name: {
                    "unit": measure.unit,
                    **measure.summary,
                    "histogram": [list(bar) for bar in bars(measure.counts)],
                }
                for measure in self.measures
            },
            "formats": dict(self.formats.most_common()),
            "types": dict(self.types.most_common()),
            "sources": dict(self.sources.most_common()),
        }


def measure_folder(folder: Path, ruler: Ruler, progress: bool = False) -> FolderStats:
    """Read every sample of a folder of shards and the header of every picture.

    Raises:
        UserError: no manifest, a shard that differs from it, or a chat that the template refuses.
    """
    manifest = Manifest.read(folder)
    longer, shorter = Measure("longer side", "px"), Measure("shorter side", "px")
    size, tiles = Measure("file size", "bytes"), Measure(*ruler.tile_measure)
    images, turns = Measure("pictures per sample", ""), Measure("answers per sample", "")
    length = Measure(*ruler.text_measure)
    formats: Counter[str] = Counter()
    types: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    num_bad = 0
    samples = track(
        read_folder(folder),
        f"measuring {folder.name}",
        manifest.num_samples,
        console=Console(stderr=True),
        disable=not progress,
    )
    for raw in samples:
        images.counts[raw.sample.num_images] += 1
        turns.counts[raw.sample.num_turns] += 1
        length.counts[ruler.length(raw)] += 1
        types.update(turn.type for turn in raw.sample.turns if turn.type)
        sources.update([raw.sample.source] if raw.sample.source else [])
        for content in raw.images:
            size.counts[len(content)] += 1
            try:
                sides = image_size(content)
                formats[image_extension(content)] += 1
            except ImageError:
                num_bad += 1
                continue
            longer.counts[max(sides)] += 1
            shorter.counts[min(sides)] += 1
            tiles.counts[ruler.num_tiles(*sides)] += 1
    measures = (length, turns, images, tiles, longer, shorter, size)
    return FolderStats(folder, manifest, measures, formats, types, sources, num_bad)


def table_rows(stats: FolderStats) -> Sequence[tuple[str, ...]]:
    """Each measure's name and summary as text, a head first."""
    head = ("", "mean", "min", *QUANTILES, "max", "total")
    rows = [head]
    for measure in stats.measures:
        found = measure.summary
        if found:
            figures = [f"{found[name]:,.0f}" for name in head[2:]]
            unit = "" if measure.unit in measure.name else f" ({measure.unit})"
            rows.append((f"{measure.name}{unit}", f"{found['mean']:,.1f}", *figures))
    return rows
