"""Benchmarks on real files, as they lie in ../shared/data."""

import io
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from eval.benchmark import find_benchmark
from eval.items import Item

SHARED = Path(__file__).resolve().parents[3].parent / "shared/data"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not there"),
]


def read(name: str, folder: str, *overrides: str, left_out: list[str] | None = None) -> list[Item]:
    """The items; a picture of the first and the last one is read."""
    items = list(find_benchmark(name, overrides).items(SHARED / folder, left_out))
    for item in (items[0], items[-1]):
        for picture in item.images:
            Image.open(io.BytesIO(picture.read())).load()
    return items


def test_subsets_of_coco_are_read_as_they_lie() -> None:
    direct = read("aokvqa_direct", "coco-mini")
    assert len(direct) == 89 and {len(item.answers) for item in direct} == {10}
    assert len(read("aokvqa_choices", "coco-mini")) == 89
    pope = read("pope", "coco-mini", "files.questions=pope_subset.jsonl")
    assert len(pope) == 828
    assert set(Counter(item.type for item in pope)) == {"random", "popular", "adversarial"}
    assert len(read("vsr", "coco-mini")) == 50
    assert len(read("sugarcrepe", "coco-mini")) == 764
    assert len(read("coco_captions", "coco-mini")) == 488
    assert len(read("chair", "coco-mini")) == 382


def test_published_files_with_a_part_of_the_pictures_count_what_is_left_out() -> None:
    pictures = ("files.images=coco-mini/images_384.tar", "only_with_pictures=true")
    texts = "files.{}=text-benchmarks/{}"
    left: list[str] = []
    questions = texts.format("questions", "pope_coco_*.jsonl.gz")
    pope = read("pope", ".", questions, *pictures, left_out=left)
    assert pope and len(pope) + len(left) == find_benchmark("pope").num_items
    assert Counter(item.answers[0] for item in pope)["yes"] * 2 == len(pope)
    left = []
    questions = texts.format("questions", "aokvqa_v1p0_val.json.gz")
    chosen = read("aokvqa_choices", ".", questions, *pictures, left_out=left)
    assert len(chosen) + len(left) == find_benchmark("aokvqa_choices").num_items
    mini = read("aokvqa_choices", "coco-mini")
    assert {item.id: item.correct for item in mini} == {item.id: item.correct for item in chosen}
    left = []
    pairs = texts.format("pairs", "sugarcrepe.tar.gz")
    found = read("sugarcrepe", ".", pairs, *pictures, left_out=left)
    assert len(found) + len(left) == find_benchmark("sugarcrepe").num_items
    assert {item.choices for item in found} == {
        item.choices for item in read("sugarcrepe", "coco-mini")
    }
    left = []
    name = texts.format("captions", "coco_captions_val2017.json.gz")
    captions = read("coco_captions", ".", name, *pictures, left_out=left)
    assert len(captions) + len(left) == find_benchmark("coco_captions").num_items
    assert len(captions) == 358
    known = {item.id: set(item.answers) for item in read("coco_captions", "coco-mini")}
    assert all(known[item.id] == set(item.answers) for item in captions)


def test_drawn_worlds_are_read_as_they_lie() -> None:
    shapes = read("shapes", "shapes")
    assert len(shapes) == find_benchmark("shapes").num_items
    nlvr = read("nlvr", "nlvr1")
    assert len(nlvr) == find_benchmark("nlvr").num_items
    assert len({item.group for item in nlvr}) == 267
    easy = islice(find_benchmark("easy_vqa").items(SHARED / "easy-vqa"), 100)
    assert {item.type for item in easy} > {"shape", "colour"}


def test_flickr8k_is_read_as_it_lies() -> None:
    for name in ("flickr8k", "flickr8k_retrieval"):
        items = read(name, "flickr8k", "options.split=dev")
        assert len(items) == 113 and {len(item.answers) for item in items} == {5}
