import io
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from data.pack import pack
from data.schema import RawSample, Sample
from data.stats import Measure, Ruler, measure_folder, table_rows
from data.stats_page import stats_page
from encoders.tiling import tile_picture
from vlm.chat.processor import Processor
from vlm.cli import main
from vlm.images import image_size, read_image

SIZES = [(16, 16), (40, 10), (10, 70), (200, 100)]


def picture(width_px: int, height_px: int, orientation: int = 1) -> bytes:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (width_px, height_px)).save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


def raw(key: str, images: list[bytes], answer: str) -> RawSample:
    question = [{"type": "image"}] * len(images) + [{"type": "text", "text": "how many?"}]
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]
    labels = {"turns": [{"type": "<b>number</b>"}], "source": "drawn"}
    return RawSample(key, Sample.parse({"messages": messages, **labels}), images)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    samples = [raw(f"{w}", [picture(w, h)], "two of them") for w, h in SIZES]
    samples += [raw("turned", [picture(40, 10, orientation=6)], "one"), raw("text", [], "none")]
    pack(samples, tmp_path / "data", samples_per_shard=4)
    return tmp_path / "data"


def measures(folder: Path, ruler: Ruler) -> dict[str, Counter[int]]:
    return {measure.name: measure.counts for measure in measure_folder(folder, ruler).measures}


def test_tiles_and_tokens_are_those_that_the_model_gets(folder: Path, processor: Processor) -> None:
    vision = processor.vision
    found = measures(folder, Ruler(vision.tile_size_px, vision.max_num_tiles, processor))
    pictures = [picture(*size) for size in SIZES] + [picture(40, 10, 6)]
    limits = vision.tile_size_px, vision.max_num_tiles
    tiled = [tile_picture(read_image(content), *limits) for content in pictures]
    name = f"tiles per picture ({vision.tile_size_px} px, at most {vision.max_num_tiles})"
    assert found[name] == Counter(len(image.tiles) for image in tiled)
    rows = [processor.encode(raw("", [b""], "two of them").sample.messages, [tiled[0]])] * 4
    rows += [processor.encode(raw("", [b""], "one").sample.messages, [tiled[0]])]
    rows += [processor.encode(raw("", [], "none").sample.messages)]
    assert found["tokens per sample"] == Counter(len(row.input_ids) for row in rows)


def test_sides_are_those_of_the_upright_picture_and_words_are_counted_without_a_tokenizer(
    folder: Path,
) -> None:
    assert image_size(picture(40, 10, 6)) == (10, 40) == read_image(picture(40, 10, 6)).size
    assert image_size(picture(40, 10, 3)) == (40, 10)
    found = measures(folder, Ruler(16, 4))
    assert found["longer side"] == Counter({16: 1, 40: 2, 70: 1, 200: 1})
    assert found["shorter side"] == Counter({16: 1, 10: 3, 100: 1})
    assert found["words per sample"] == Counter({5: 4, 3: 2})
    assert found["pictures per sample"] == Counter({1: 5, 0: 1})


def test_the_summary_is_of_the_sorted_values() -> None:
    summary = Measure("x", "", Counter(range(1, 101))).summary
    assert summary == {
        "number": 100,
        "total": 5050,
        "mean": 50.5,
        "min": 1,
        "median": 50,
        "p95": 95,
        "p99": 99,
        "max": 100,
    }
    assert Measure("nothing", "").summary == {}


def test_a_picture_that_rotted_is_counted(folder: Path) -> None:
    path = folder / "shard-000000.tar"
    path.write_bytes(path.read_bytes().replace(picture(16, 16), b"x" * len(picture(16, 16))))
    stats = measure_folder(folder, Ruler(16, 4))
    assert stats.bad_pictures == 1 and stats.formats == {"jpg": 4}
    assert "pictures that cannot be read: 1" in stats_page([stats])


def test_the_command_prints_a_table_and_writes_page_and_json(
    folder: Path, tmp_path: Path, processor: Processor, capsys: pytest.CaptureFixture[str]
) -> None:
    processor.save(tmp_path / "tokenizer")
    options = ["--json", str(tmp_path / "stats.json"), "--tile-size", "16", "--max-tiles", "4"]
    arguments = ["shards", "stats", str(folder), *options]
    assert main([*arguments, "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    printed = capsys.readouterr().out
    assert "tokens per sample" in printed and "tiles per picture (16 px, at most 4)" in printed
    (found,) = json.loads((tmp_path / "stats.json").read_text())
    assert found["samples"] == 6 and found["types"] == {"<b>number</b>": 6}
    histogram = found["measures"]["longer side"]["histogram"]
    assert sum(count for _, _, count in histogram) == 5
    page = (folder / "stats.html").read_text()
    assert "<svg" in page and "&lt;b&gt;number" in page and "<script" not in page
    assert main(["shards", "stats", str(tmp_path / "tokenizer")]) == 2
    assert "holds no manifest.json" in capsys.readouterr().err
    rows = table_rows(measure_folder(folder, Ruler(16, 4)))
    assert len({len(row) for row in rows}) == 1
