"""A few rendered items of every benchmark with pictures, as files of its published layout."""

import base64
import csv
import gzip
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from data.shape_samples import png_bytes
from data.shapes import caption, make_scene


def png(seed: int) -> bytes:
    """A rendered scene as a PNG file."""
    return png_bytes(make_scene(Random(seed)))


def words(seed: int) -> str:
    """What the scene shows."""
    return caption(make_scene(Random(seed)))


def write_picture(path: Path, seed: int) -> None:
    """Write a rendered scene in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(png(seed))).convert("RGB").save(path)


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write parquet; bytes become cells as `datasets` writes pictures, row groups hold two rows."""
    import pyarrow
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in rows[0]}
    arrays = {}
    for name, cells in columns.items():
        if any(isinstance(cell, bytes) for cell in cells):
            kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
            values = [None if cell is None else {"bytes": cell, "path": None} for cell in cells]
            arrays[name] = pyarrow.array(values, kind)
        elif all(cell is None for cell in cells):
            kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
            arrays[name] = pyarrow.array(cells, kind)
        else:
            arrays[name] = pyarrow.array(cells)
    parquet.write_table(pyarrow.table(arrays), path, row_group_size=2)


def ten(*answers: str) -> list[str]:
    """Ten people's answers."""
    return [*answers, *[answers[0]] * (10 - len(answers))]


def write_vqa_v2(folder: Path, prefix: str = "v2_", types: Mapping[str, str] | None = None) -> None:
    questions, annotations = [], []
    kinds = ["yes/no", "number", "other"] if types is None else list(types)
    asked = [("Is there a circle?", "yes"), ("How many shapes?", "2"), ("What colour?", "red")]
    for number, (kind, (question, answer)) in enumerate(zip(kinds, asked, strict=False)):
        ids = {"question_id": 4000 + number, "image_id": 40 + number // 2}
        questions.append({**ids, "question": question})
        answers = [{"answer": a, "answer_id": n} for n, a in enumerate(ten(answer, "no", "no"), 1)]
        answer_type = kind if types is None else "other"
        annotations.append(
            {**ids, "question_type": kind, "answer_type": answer_type, "answers": answers}
        )
        write_picture(folder / f"val2014/COCO_val2014_{ids['image_id']:012d}.jpg", ids["image_id"])
    write_json(
        folder / f"{prefix}OpenEnded_mscoco_val2014_questions.json",
        {"data_subtype": "val2014", "questions": questions},
    )
    content: dict[str, Any] = {"data_subtype": "val2014", "annotations": annotations}
    if types is not None:
        content["question_types"] = types
    write_json(folder / f"{prefix}mscoco_val2014_annotations.json", content)


def write_ok_vqa(folder: Path) -> None:
    write_vqa_v2(folder, "", {"one": "Vehicles and Transportation", "two": "Objects"})


def write_gqa(folder: Path) -> None:
    questions = {
        f"20{number}": {
            "question": f"Is shape {number} red?",
            "imageId": f"n{number}",
            "answer": answer,
            "types": {"structural": kind, "semantic": "attr", "detailed": "verifyAttr"},
        }
        for number, (answer, kind) in enumerate([("yes", "verify"), ("circle", "query")])
    }
    write_json(folder / "testdev_balanced_questions.json", questions)
    for number in range(2):
        write_picture(folder / f"images/n{number}.jpg", number)


def write_aokvqa(folder: Path) -> None:
    rows = [
        {
            "split": "val",
            "image_id": 461751 + number,
            "question_id": f"q{number}",
            "question": "What is it?",
            "choices": ["circle", "square", "triangle", "cube"],
            "correct_choice_idx": number,
            "direct_answers": ten("circle", "disc"),
            "difficult_direct_answer": number == 1,
            "rationales": ["It is round."],
        }
        for number in range(2)
    ]
    (folder / "aokvqa_v1p0_val.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    for row in rows:
        write_picture(folder / f"val2017/{row['image_id']:012d}.jpg", row["correct_choice_idx"])


def write_text_vqa(folder: Path) -> None:
    rows = [
        {
            "question": "what does the sign say?",
            "image_id": f"00a{number}",
            "question_id": 34602 + number,
            "answers": ten("stop", "halt"),
        }
        for number in range(2)
    ]
    write_json(folder / "TextVQA_0.5.1_val.json", {"dataset_name": "textvqa", "data": rows})
    for number in range(2):
        write_picture(folder / f"train_images/00a{number}.jpg", number)


def write_doc_vqa(folder: Path) -> None:
    rows = [
        {
            "questionId": 49153 + number,
            "question": "What is the date?",
            "question_types": ["handwritten", "form"],
            "image": f"documents/page_{number}.png",
            "answers": ["May 3", "3 May"],
        }
        for number in range(2)
    ]
    write_json(folder / "val_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": rows})
    for number in range(2):
        write_picture(folder / f"documents/page_{number}.png", number)


def write_chartqa(folder: Path) -> None:
    for kind in ("human", "augmented"):
        rows = [
            {"imgname": f"{kind}{n}.png", "query": "How many?", "label": str(10 + n)}
            for n in range(2)
        ]
        write_json(folder / f"test/test_{kind}.json", rows)
        for number, row in enumerate(rows):
            write_picture(folder / "test/png" / row["imgname"], number)


SCIENCE = {
    "question": "Which is round?",
    "choices": ["a circle", "a square"],
    "answer": 0,
    "hint": "",
    "image": None,
    "task": "closed choice",
    "grade": "grade3",
    "subject": "natural science",
    "topic": "geometry",
    "category": "shapes",
    "skill": "Name shapes",
    "lecture": "",
    "solution": "",
    "split": "test",
}


def write_scienceqa(folder: Path) -> None:
    problems = {
        "1": SCIENCE,
        "2": {**SCIENCE, "image": "image.png", "hint": "Look.", "subject": "social science"},
        "5": {**SCIENCE, "image": "image.png", "answer": 1, "grade": "grade8"},
        "7": {**SCIENCE, "split": "train"},
    }
    write_json(folder / "problems.json", problems)
    write_json(folder / "pid_splits.json", {"train": ["7"], "test": ["1", "2", "5"]})
    for seed in (2, 5):
        write_picture(folder / f"images/test/{seed}/image.png", seed)


def write_mmmu(folder: Path) -> None:
    def row(subject: str, number: int, **changes: Any) -> dict[str, Any]:
        images = {f"image_{place}": None for place in range(1, 8)}
        return {
            "id": f"validation_{subject}_{number}",
            "question": "What does <image 1> show?",
            "options": "['a circle', \"it's <image 2>\"]",
            "explanation": "",
            **images,
            "image_1": png(number),
            "answer": "B",
            "question_type": "multiple-choice",
            "subfield": "Geometry",
            **changes,
        }

    rows = [
        row("Math", 1, image_2=png(5)),
        row("Math", 2, options="[]", question_type="open", answer="['30', 'thirty']"),
    ]
    write_table(folder / "Math/validation-00000-of-00001.parquet", rows)
    rows = [row("Art_Theory", 1, answer="A", options="['red', 'blue', 'green']")]
    write_table(folder / "Art_Theory/validation-00000-of-00001.parquet", rows)


MMBENCH_COLUMNS = (
    "index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source",
    "l2-category", "comment", "split",
)  # fmt: skip


def mmbench_row(index: int, **changes: str) -> dict[str, str]:
    row = {
        "index": str(index),
        "question": "Which shape\nis it?",
        "A": "circle",
        "B": "square",
        "C": "triangle",
        "answer": "B",
        "category": "object_localization",
        "l2-category": "finegrained_perception",
        "image": base64.b64encode(png(index % 100)).decode(),
        "split": "dev",
    }
    return {**dict.fromkeys(MMBENCH_COLUMNS, ""), **row, **changes}


def write_mmbench(folder: Path, rows: Sequence[Mapping[str, str]] | None = None) -> None:
    rows = rows or [
        mmbench_row(241),
        mmbench_row(252, hint='Look, "here".', C="", answer="A", category="ocr"),
    ]
    with (folder / "mmbench_dev_20230712.tsv").open("w", newline="") as file:
        table = csv.DictWriter(file, MMBENCH_COLUMNS, delimiter="\t")
        table.writeheader()
        table.writerows(rows)


def write_mme(folder: Path) -> None:
    release = folder / "MME_Benchmark_release_version"
    asked = "Is it round? Please answer yes or no.\tYes\nIs it red? Please answer yes or no.\tNo\n"
    for task, apart in (("existence", False), ("landmark", True), ("code_reasoning", False)):
        for number in range(2):
            below = release / task
            text = below / ("questions_answers_YN" if apart else "") / f"000{number}.txt"
            text.parent.mkdir(parents=True, exist_ok=True)
            text.write_text(asked)
            write_picture(below / ("images" if apart else "") / f"000{number}.jpg", number)


def write_pope(folder: Path) -> None:
    for setting in ("random", "popular", "adversarial"):
        rows = [
            {
                "question_id": number + 1,
                "image": f"COCO_val2014_{7 + number // 2:012d}.jpg",
                "text": f"Is there a {thing} in the image?",
                "label": label,
            }
            for number, (thing, label) in enumerate([("circle", "yes"), (setting, "no")])
        ]
        write_lines(folder / f"coco_pope_{setting}.json", rows)
    write_picture(folder / "val2014/COCO_val2014_000000000007.jpg", 7)


def write_sugarcrepe(folder: Path) -> None:
    for category in ("add_att", "swap_obj"):
        pairs = {
            str(number): {
                "filename": f"{number:012d}.jpg",
                "caption": words(number),
                "negative_caption": words(number + 10),
            }
            for number in (1, 2)
        }
        write_json(folder / f"{category}.json", pairs)
    for number in (1, 2):
        write_picture(folder / f"val2017/{number:012d}.jpg", number)


def write_vsr(folder: Path) -> None:
    rows = [
        {
            "image": f"{number:012d}.jpg",
            "image_link": f"http://images.cocodataset.org/train2017/{number:012d}.jpg",
            "caption": "The circle is above the square.",
            "label": number,
            "relation": relation,
        }
        for number, relation in enumerate(["above", "left of"])
    ]
    write_lines(folder / "splits/random/test.jsonl", rows)
    for row in rows:
        write_picture(folder / "trainval2017" / str(row["image"]), int(str(row["label"])))


def write_shapes(folder: Path) -> None:
    (folder / "test.query_str.txt").write_text("is a red shape blue\nis a circle above a square\n")
    (folder / "test.output").write_text("false\ntrue\n")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 30, 30, 3), dtype=np.uint8)
    np.save(folder / "test.input.npy", pixels)


def write_nlvr(folder: Path) -> None:
    rows = [
        {
            "identifier": key,
            "sentence": "There is a tower.",
            "label": label,
            "directory": "0",
            "evals": {"r0": label},
        }
        for key, label in (("72-0", "true"), ("72-1", "false"), ("80-3", "true"))
    ]
    write_lines(folder / "dev.json", rows)
    for seed, row in enumerate(rows):
        for order in range(6):
            write_picture(folder / f"images/0/dev-{row['identifier']}-{order}.png", seed)


def write_nlvr2(folder: Path) -> None:
    keys = ("dev-850-0-0", "dev-850-1-0", "dev-850-0-1")
    rows = [
        {
            "identifier": key,
            "sentence": "Both show a circle.",
            "label": label,
            "left_url": "http://",
        }
        for key, label in zip(keys, ("True", "False", "True"), strict=True)
    ]
    write_lines(folder / "dev.json", rows)
    for pair in (0, 1):
        for side in (0, 1):
            write_picture(folder / f"dev/dev-850-{pair}-img{side}.png", 2 * pair + side)


def write_easy_vqa(folder: Path) -> None:
    rows = [["what shape is in the image?", "circle", 0], ["is there a red shape?", "no", 1]]
    write_json(folder / "questions.json", rows)
    for number in range(2):
        write_picture(folder / f"images/{number}.png", number)


def coco_captions(subset: str) -> dict[str, Any]:
    images = [{"id": n, "file_name": f"{subset}{n:012d}.jpg"} for n in (139, 285)]
    annotations = [
        {"id": 10 * image["id"] + n, "image_id": image["id"], "caption": words(n) + " \n"}
        for image in images
        for n in range(5)
    ]
    return {"images": images, "annotations": annotations}


def write_coco_captions(folder: Path) -> None:
    write_json(folder / "annotations/captions_val2017.json", coco_captions(""))
    for number in (139, 285):
        write_picture(folder / f"val2017/{number:012d}.jpg", number)


def write_chair(folder: Path) -> None:
    write_json(folder / "annotations/captions_val2014.json", coco_captions("COCO_val2014_"))
    instances = {
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        "annotations": [
            {"image_id": 139, "category_id": 18},
            {"image_id": 139, "category_id": 18},
            {"image_id": 139, "category_id": 1},
        ],
    }
    write_json(folder / "annotations/instances_val2014.json", instances)
    for number in (139, 285):
        write_picture(folder / f"val2014/COCO_val2014_{number:012d}.jpg", number)


def write_karpathy(folder: Path, name: str = "coco", pictures: str = "val2014") -> None:
    images = []
    for number, split in ((391895, "test"), (60623, "restval"), (483108, "test")):
        file = f"COCO_val2014_{number:012d}.jpg" if name == "coco" else f"{number}.jpg"
        sentences = [{"raw": words(number + n), "tokens": [], "imgid": 0} for n in range(5)]
        image = {"filename": file, "split": split, "sentences": sentences, "imgid": 0}
        images.append({**image, "cocoid": number} if name == "coco" else image)
        if split == "test":
            write_picture(folder / pictures / file, number)
    write_json(folder / f"dataset_{name}.json", {"dataset": name, "images": images})


def write_flickr8k(folder: Path) -> None:
    names = ["1000268201_693b08cb0e.jpg", "997722733_0cb5439472.jpg"]
    lines = [f"{name}#{n}\t{words(n)} ." for name in names for n in range(5)]
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    (folder / "Flickr_8k.testImages.txt").write_text("\n".join(reversed(names)) + "\n")
    for seed, name in enumerate(names):
        write_picture(folder / "Flicker8k_Dataset" / name, seed)


def write_flickr30k(folder: Path) -> None:
    write_karpathy(folder, "flickr30k", "flickr30k-images")


def write_nocaps(folder: Path) -> None:
    images = [
        {"id": number, "file_name": f"0013ea20{number}.jpg", "domain": domain, "coco_url": ""}
        for number, domain in enumerate(["in-domain", "out-domain"])
    ]
    annotations = [
        {"image_id": image["id"], "id": 0, "caption": words(n)}
        for image in images
        for n in range(10)
    ]
    content = {"images": images, "annotations": annotations}
    write_json(folder / "nocaps_val_4500_captions.json", content)
    for image in images:
        write_picture(folder / "validation" / str(image["file_name"]), int(str(image["id"])))


def write_classes(folder: Path) -> None:
    for seed, name in enumerate(["red_circle", "square"]):
        for number in range(2):
            write_picture(folder / name / f"{number}.png", 10 * seed + number)


def write_cifar10(folder: Path) -> None:
    rows = [{"img": png(number), "label": 3 * number} for number in range(3)]
    write_table(folder / "plain_text/test-00000-of-00001.parquet", rows)


def write_mm_vet(folder: Path) -> None:
    rows = {
        f"v1_{number}": {
            "imagename": f"v1_{number}.png",
            "question": "What is x in the equation?",
            "answer": "-1<AND>-5",
            "imagesource": "drawn",
            "capability": capability,
        }
        for number, capability in enumerate([["ocr", "math"], ["rec"]])
    }
    write_json(folder / "mm-vet.json", rows)
    for number, row in enumerate(rows.values()):
        write_picture(folder / "images" / str(row["imagename"]), number)


BENCHMARK_WRITERS: dict[str, Callable[[Path], None]] = {
    "aokvqa_choices": write_aokvqa,
    "aokvqa_direct": write_aokvqa,
    "chair": write_chair,
    "chartqa": write_chartqa,
    "cifar10": write_cifar10,
    "coco_captions": write_coco_captions,
    "coco_karpathy": write_karpathy,
    "coco_retrieval": write_karpathy,
    "doc_vqa": write_doc_vqa,
    "easy_vqa": write_easy_vqa,
    "flickr30k": write_flickr30k,
    "flickr30k_retrieval": write_flickr30k,
    "flickr8k": write_flickr8k,
    "flickr8k_retrieval": write_flickr8k,
    "folder_classification": write_classes,
    "gqa": write_gqa,
    "mm_vet": write_mm_vet,
    "mmbench": write_mmbench,
    "mme": write_mme,
    "mmmu": write_mmmu,
    "nlvr": write_nlvr,
    "nlvr2": write_nlvr2,
    "nocaps": write_nocaps,
    "ok_vqa": write_ok_vqa,
    "pope": write_pope,
    "scienceqa": write_scienceqa,
    "shapes": write_shapes,
    "sugarcrepe": write_sugarcrepe,
    "text_vqa": write_text_vqa,
    "vqa_v2": write_vqa_v2,
    "vsr": write_vsr,
}
