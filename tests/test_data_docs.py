"""docs/data.md tells the truth: its commands run, on rendered pictures and on photographs."""

import io
import json
import re
import shlex
import tarfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
from pyarrow import parquet

from data.pack import Manifest
from data.schema import sample_key
from data.shapes import make_scene, render
from data.shards import read_folder
from data.sources import FORMATS
from vlm.cli import main

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "data.md").read_text()
COCO_MINI = ROOT.parent / "shared/data/coco-mini"
NUM_PICTURES = 24


@dataclass(frozen=True)
class Photo:
    """A picture with the captions that people gave it."""

    content: bytes
    captions: list[str]

    @property
    def questions(self) -> list[tuple[str, str]]:
        """Questions that the captions answer."""
        dog = "yes" if any("dog" in caption for caption in self.captions) else "no"
        return [("How many words has the caption?", "7"), ("Is there a dog?", dog)]


def commands() -> list[list[str]]:
    """The arguments of every call of `vlm` on the page."""
    found = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    lines = [line for block in found for line in block.splitlines()]
    assert all(line.startswith("vlm shards ") for line in lines)
    return [shlex.split(line)[1:] for line in lines]


def rendered() -> list[Photo]:
    photos = []
    for seed in range(NUM_PICTURES):
        buffer = io.BytesIO()
        render(make_scene(Random(seed))).resize((160, 140)).save(buffer, "JPEG")
        photos.append(Photo(buffer.getvalue(), [f"Scene {seed}.", "a dog of shapes"]))
    return photos


def photographed() -> list[Photo]:
    rows = (COCO_MINI / "captions.jsonl").read_text().splitlines()[:NUM_PICTURES]
    with tarfile.open(COCO_MINI / "images_384.tar") as tar:
        members = {Path(name).name: name for name in tar.getnames()}
        photos = []
        for row in map(json.loads, rows):
            file = tar.extractfile(members[Path(row["image"]).name])
            assert file is not None
            photos.append(Photo(file.read(), row["captions"]))
    return photos


def download(folder: Path, photos: list[Photo]) -> None:
    """Lay the pictures out as each data set comes."""
    names = [f"{index:012d}.jpg" for index in range(len(photos))]

    def pictures(path: str, prefix: str = "") -> None:
        (folder / path).mkdir(parents=True)
        for name, photo in zip(names, photos, strict=True):
            (folder / path / f"{prefix}{name}").write_bytes(photo.content)

    pictures("pictures/beach")
    for name, photo in zip(names, photos, strict=True):
        (folder / "pictures/beach" / name).with_suffix(".txt").write_text(photo.captions[0])
    pictures("coco/train2017")
    write_coco(folder / "coco/annotations", names, photos)
    pictures("vqa2/train2014", "COCO_train2014_")
    write_vqa2(folder / "vqa2", photos)
    pictures("llava/images/coco/train2017")
    talk = [
        {
            "id": name,
            "image": f"coco/train2017/{name}",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is this?"},
                {"from": "gpt", "value": photo.captions[0]},
            ],
        }
        for name, photo in zip(names, photos, strict=True)
    ]
    (folder / "llava/llava_instruct.json").write_text(json.dumps(talk))
    write_tables(folder, photos)


def write_coco(folder: Path, names: list[str], photos: list[Photo]) -> None:
    folder.mkdir()
    images = [{"id": index, "file_name": name} for index, name in enumerate(names)]
    annotations = [
        {"id": 10 * index + number, "image_id": index, "caption": caption}
        for index, photo in enumerate(photos)
        for number, caption in enumerate(photo.captions)
    ]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    (folder / "captions_train2017.json").write_text(json.dumps(content))


def write_vqa2(folder: Path, photos: list[Photo]) -> None:
    questions, annotations = [], []
    for index, photo in enumerate(photos):
        for number, (text, answer) in enumerate(photo.questions):
            key = {"image_id": index, "question_id": 1000 * index + number}
            questions.append({**key, "question": text})
            answers = [{"answer": answer, "answer_id": person} for person in range(1, 11)]
            kind = "number" if answer.isdigit() else "yes/no"
            annotations.append(
                {
                    **key,
                    "answers": answers,
                    "multiple_choice_answer": answer,
                    "answer_type": kind,
                    "question_type": "is there",
                }
            )
    head = {"info": {}, "data_subtype": "train2014", "data_type": "mscoco"}
    (folder / "v2_OpenEnded_mscoco_train2014_questions.json").write_text(
        json.dumps({**head, "task_type": "Open-Ended", "questions": questions})
    )
    (folder / "v2_mscoco_train2014_annotations.json").write_text(
        json.dumps({**head, "annotations": annotations})
    )


def write_tables(folder: Path, photos: list[Photo]) -> None:
    rows = [
        {
            "images": [{"bytes": photo.content, "path": None}],
            "texts": [
                {"user": text, "assistant": answer, "source": "ai2d"}
                for text, answer in photo.questions
            ],
        }
        for photo in photos
    ]
    table = pa.Table.from_pylist(rows)
    (folder / "cauldron/ai2d").mkdir(parents=True)
    parquet.write_table(
        table, folder / "cauldron/ai2d/train-00000-of-00001-0a1b2c3d.parquet", row_group_size=10
    )
    for split in ("train", "test"):
        saved = folder / "saved" / split
        saved.mkdir(parents=True)
        with pa.OSFile(str(saved / "data-00000-of-00001.arrow"), "wb") as file:
            with pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
        (saved / "state.json").write_text(json.dumps(state))
    (folder / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')


def run_the_page(folder: Path, photos: list[Photo], monkeypatch: pytest.MonkeyPatch) -> None:
    download(folder / "downloads", photos)
    monkeypatch.chdir(folder)
    for arguments in commands():
        assert main(arguments) == 0, arguments
    packed = {path.parent for path in Path("shards").rglob("manifest.json")}
    assert packed == {
        Path("shards") / name
        for name in (
            "pictures",
            "coco",
            "vqa2",
            "llava",
            "ai2d",
            "saved",
            "coco_small/train",
            "coco_small/validation",
        )
    }
    for path in packed - {Path("shards/coco_small/train"), Path("shards/coco_small/validation")}:
        manifest = Manifest.read(path)
        assert (manifest.num_samples, manifest.num_rejects) == (len(photos), 0), path
        contents = [raw.images[0] for raw in read_folder(path)]
        assert contents == [photo.content for photo in photos], path
    keys = [raw.key for raw in read_folder(Path("shards/pictures"))]
    assert keys[0] == sample_key("beach/000000000000")
    found = json.loads(Path("shards/coco.json").read_text())
    assert found[0]["pictures"] == len(photos)


def test_the_page_runs_on_rendered_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_the_page(tmp_path, rendered(), monkeypatch)
    sheet = Path("shards/coco/contact_sheet.html").read_text()
    assert sheet.count("<article>") == NUM_PICTURES  # each has a caption with a dog


@pytest.mark.real_data
def test_the_page_runs_on_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not COCO_MINI.is_dir():
        pytest.skip("../shared/data/coco-mini is not there")
    run_the_page(tmp_path, photographed(), monkeypatch)


def test_every_option_that_the_page_names_exists() -> None:
    from typer.main import get_command

    from data.commands import shards

    group = get_command(shards)
    known = {option for c in group.commands.values() for p in c.params for option in p.opts}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) <= known
    help_of_format = next(p.help for p in group.commands["pack"].params if "--format" in p.opts)
    assert all(name in help_of_format for name in FORMATS)
