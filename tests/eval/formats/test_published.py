"""Every benchmark reads the files of its published layout, as what they say."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import picture_benchmarks as published
import pytest
from picture_benchmarks import BENCHMARK_WRITERS, png, words, write_table
from PIL import Image

from eval.benchmark import BenchmarkConfig, benchmark_names, find_benchmark
from eval.items import Item
from eval.prompts import Pictures, conversation
from vlm.errors import UserError


def config(name: str, *overrides: str) -> BenchmarkConfig:
    return find_benchmark(name, overrides)


def read(name: str, folder: Path, *overrides: str) -> list[Item]:
    return list(config(name, *overrides).items(folder))


def written(name: str, folder: Path, *overrides: str) -> list[Item]:
    folder.mkdir(exist_ok=True)
    BENCHMARK_WRITERS[name](folder)
    return read(name, folder, *overrides)


def prompt(name: str, item: Item) -> str:
    """The text of what is asked, pictures as `<image>`."""
    message = conversation(config(name), item, [], Pictures())[-1]
    parts = message["content"]
    return "".join(part.get("text", "<image>") for part in parts)


@pytest.mark.parametrize("name", sorted(BENCHMARK_WRITERS))
def test_published_files_give_items_that_can_be_asked(name: str, tmp_path: Path) -> None:
    items = written(name, tmp_path)
    benchmark = config(name)
    assert len({item.id for item in items}) == len(items) >= 2
    for item in items:
        assert item.answers or item.correct
        for picture in item.images:
            Image.open(io.BytesIO(picture.read())).load()
        if benchmark.ask in ("generate", "choose"):
            assert prompt(name, item)
    assert any(item.images for item in items)


def test_every_picture_benchmark_has_a_writer() -> None:
    """Those of texts and of shards have theirs elsewhere."""
    reading_pictures = {
        name
        for name in benchmark_names()
        if any(role in config(name).files for role in ("images", "pictures"))
    }
    assert reading_pictures - set(BENCHMARK_WRITERS) == set()


def test_missing_files_are_named_with_where_they_come_from(tmp_path: Path) -> None:
    BENCHMARK_WRITERS["pope"](tmp_path)
    shutil.rmtree(tmp_path / "val2014")
    with pytest.raises(
        UserError, match=r"has no val2014\* \| images\* \(images\), which pope needs"
    ):
        read("pope", tmp_path)
    BENCHMARK_WRITERS["vqa_v2"](tmp_path)
    (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(UserError, match=r"has no v2_mscoco.*json \(annotations\)"):
        read("vqa_v2", tmp_path)


def test_a_row_that_lacks_a_field_is_named(tmp_path: Path) -> None:
    BENCHMARK_WRITERS["vsr"](tmp_path)
    path = tmp_path / "splits/random/test.jsonl"
    path.write_text(path.read_text().replace('"relation"', '"other"'))
    with pytest.raises(UserError, match=r"test\.jsonl:1 has no 'relation'; it has image, "):
        read("vsr", tmp_path)


def test_unknown_options_of_a_reader_are_refused(tmp_path: Path) -> None:
    BENCHMARK_WRITERS["nlvr"](tmp_path)
    with pytest.raises(UserError, match=r"options\.spilt: .*this format's options: version, split"):
        read("nlvr", tmp_path, "options.spilt=dev")


def test_items_without_pictures_are_left_out_on_request_and_counted(tmp_path: Path) -> None:
    BENCHMARK_WRITERS["nlvr2"](tmp_path)
    (tmp_path / "dev/dev-850-1-img1.png").unlink()
    with pytest.raises(UserError, match=r"no picture 'dev-850-1-img1\.png'; searched: dev"):
        read("nlvr2", tmp_path)
    left_out: list[str] = []
    items = list(config("nlvr2", "only_with_pictures=true").items(tmp_path, left_out))
    assert [item.id for item in items] == ["dev-850-0-0", "dev-850-0-1"]
    assert left_out == ["dev-850-1-0"]
    BENCHMARK_WRITERS["mme"](tmp_path)
    (tmp_path / "MME_Benchmark_release_version/landmark/images/0001.jpg").unlink()
    left_out = []
    assert len(list(config("mme", "only_with_pictures=true").items(tmp_path, left_out))) == 10
    assert left_out == ["landmark/0001#1", "landmark/0001#2"]


@pytest.mark.parametrize("name", sorted(BENCHMARK_WRITERS))
def test_without_pictures_the_same_items_are_there_to_be_scored(name: str, tmp_path: Path) -> None:
    items = written(name, tmp_path)
    for folder in ("val2014", "val2017", "trainval2017", "train_images", "documents", "images"):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
    for path in (tmp_path / "MME_Benchmark_release_version").rglob("*.jpg"):
        path.unlink()
    known = list(config(name).items(tmp_path, names_only=True))
    assert [replace(item, images=()) for item in known] == [
        replace(item, images=()) for item in items
    ]


def test_a_picture_is_never_taken_for_another_of_the_same_name(tmp_path: Path) -> None:
    BENCHMARK_WRITERS["scienceqa"](tmp_path)
    shutil.rmtree(tmp_path / "images/test/5")  # one image.png is left
    with pytest.raises(UserError, match=r"no picture 'test/5/image\.png'"):
        read("scienceqa", tmp_path)


def test_vqa_v2_has_ten_answers_and_the_type_of_the_answer(tmp_path: Path) -> None:
    items = written("vqa_v2", tmp_path)
    assert [item.id for item in items] == ["4000", "4001", "4002"]
    assert [item.type for item in items] == ["yes/no", "number", "other"]
    assert items[0].answers == ("yes", "no", "no", *["yes"] * 7)
    assert items[0].images == items[1].images != items[2].images
    assert items[0].images[0].name == "COCO_val2014_000000000040.jpg"
    asked = "<image>Is there a circle?\nAnswer the question using a single word or phrase."
    assert prompt("vqa_v2", items[0]) == asked


def test_coco_pictures_are_found_by_their_number_alone(tmp_path: Path) -> None:
    items = written("vqa_v2", tmp_path)
    for path in (tmp_path / "val2014").iterdir():
        path.rename(path.with_name(path.name.rpartition("_")[2]))
    renamed = read("vqa_v2", tmp_path)
    assert renamed[0].images[0].name == "000000000040.jpg"
    assert [item.images[0].read() for item in renamed] == [
        (tmp_path / "val2014" / item.images[0].name).read_bytes() for item in renamed
    ]
    assert [item.question for item in renamed] == [item.question for item in items]


def test_ok_vqa_types_have_their_names(tmp_path: Path) -> None:
    items = written("ok_vqa", tmp_path)
    assert [item.type for item in items] == ["Vehicles and Transportation", "Objects"]


def test_gqa_types_are_structural_or_semantic(tmp_path: Path) -> None:
    assert [item.type for item in written("gqa", tmp_path)] == ["verify", "query"]
    assert {item.type for item in read("gqa", tmp_path, "options.type=semantic")} == {"attr"}


def test_gqa_tables_join_questions_and_pictures(tmp_path: Path) -> None:
    write_table(
        tmp_path / "testdev_balanced_instructions/testdev-00000-of-00001.parquet",
        [
            {"id": "201", "imageId": "n7", "question": "Is it red?", "answer": "yes"},
            {"id": "202", "imageId": "n7", "question": "What is it?", "answer": "circle"},
        ],
    )
    write_table(
        tmp_path / "testdev_balanced_images/testdev-00000-of-00001.parquet",
        [{"id": "n6", "image": png(6)}, {"id": "n7", "image": png(7)}],
    )
    items = read("gqa", tmp_path)
    assert [item.answers for item in items] == [("yes",), ("circle",)]
    assert items[0].images == items[1].images
    assert items[0].images[0].read() == png(7)
    write_table(
        tmp_path / "testdev_balanced_images/testdev-00000-of-00001.parquet",
        [{"id": "n6", "image": png(6)}],
    )
    with pytest.raises(UserError, match="shows 'n7', which no table of pictures has"):
        read("gqa", tmp_path)


def test_aokvqa_is_asked_for_an_answer_or_for_a_choice(tmp_path: Path) -> None:
    direct = written("aokvqa_direct", tmp_path)
    assert [item.type for item in direct] == ["other", "difficult"]
    assert direct[0].answers[:3] == ("circle", "disc", "circle") and not direct[0].choices
    (easy,) = read("aokvqa_direct", tmp_path, "options.difficult=false")
    assert easy.id == "q0"
    choices = read("aokvqa_choices", tmp_path)
    assert [item.correct for item in choices] == [(0,), (1,)]
    assert prompt("aokvqa_choices", choices[0]) == (
        "<image>What is it?\nA. circle\nB. square\nC. triangle\nD. cube\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_tables_of_the_hub_give_the_same_as_the_original_files(tmp_path: Path) -> None:
    original = written("text_vqa", tmp_path / "original")
    rows = json.loads((tmp_path / "original/TextVQA_0.5.1_val.json").read_text())["data"]
    table = [
        {**row, "image": item.images[0].read(), "ocr_tokens": ["STOP", "4"]}
        for row, item in zip(rows, original, strict=True)
    ]
    write_table(tmp_path / "hub/data/validation-00000-of-00001.parquet", table)
    tables = read("text_vqa", tmp_path / "hub")
    assert [replace(item, fields={}) for item in tables] == [
        replace(item, fields={}) for item in original
    ]
    assert [item.images[0].read() for item in tables] == [i.images[0].read() for i in original]
    assert tables[0].fields["ocr_tokens"] == "STOP, 4"


def test_vqa_tables_of_the_hub(tmp_path: Path) -> None:
    answers = [{"answer": a, "answer_confidence": "yes", "answer_id": 1} for a in "ab"]
    row = {"question_id": 9, "question": "What?", "image": png(1), "answer_type": "other"}
    write_table(
        tmp_path / "a/data/validation-00000-of-00001.parquet",
        [{**row, "image_id": 5, "answers": answers}],
    )
    (item,) = read("vqa_v2", tmp_path / "a")
    assert (item.id, item.answers, item.type) == ("9", ("a", "b"), "other")
    assert item.images[0].name == "COCO_val2014_000000000005.jpg"
    write_table(
        tmp_path / "b/data/val2014-00000-of-00002.parquet",
        [{**row, "question_type": "one", "answers": ["a", "b"]}],
    )
    (item,) = read("ok_vqa", tmp_path / "b")
    assert (item.answers, item.images[0].read()) == (("a", "b"), png(1))


def test_doc_vqa_reads_files_and_tables(tmp_path: Path) -> None:
    items = written("doc_vqa", tmp_path / "original")
    assert (items[0].answers, items[0].type) == (("May 3", "3 May"), "handwritten")
    row = {
        "questionId": "49153",
        "question": "What is the date?",
        "question_types": ["form"],
        "image": png(3),
        "ucsf_document_id": "pybv0228",
        "ucsf_document_page_no": "81",
        "answers": ["May 3"],
    }
    write_table(
        tmp_path / "hub/DocVQA/validation-00000-of-00006.parquet", [row, {**row, "questionId": "2"}]
    )
    tables = read("doc_vqa", tmp_path / "hub")
    assert [item.id for item in tables] == ["49153", "2"]
    assert tables[0].images == tables[1].images  # a page is read once
    assert tables[0].type == "form"


def test_chartqa_counts_human_and_augmented_questions(tmp_path: Path) -> None:
    items = written("chartqa", tmp_path / "original")
    assert [item.id for item in items] == ["augmented-0", "augmented-1", "human-0", "human-1"]
    assert items[2].answers == ("10",)
    row = {"question": "How many?", "answer": "7", "image": png(1)}
    rows = [{**row, "type": "human_test"}, {**row, "type": "augmented_test"}]
    write_table(tmp_path / "hub/data/test-00000-of-00001.parquet", rows)
    assert [item.type for item in read("chartqa", tmp_path / "hub")] == ["human", "augmented"]
    row = {"query": "How many?", "label": ["7"], "image": png(1), "human_or_machine": 0}
    write_table(tmp_path / "m4/data/test-00000-of-00001.parquet", [row])
    (item,) = read("chartqa", tmp_path / "m4")
    assert (item.id, item.answers) == ("human-0", ("7",))


def test_scienceqa_shows_the_hint_and_keeps_what_its_parts_need(tmp_path: Path) -> None:
    items = written("scienceqa", tmp_path / "original")
    assert [item.id for item in items] == ["1", "2", "5"]
    assert [len(item.images) for item in items] == [0, 1, 1]
    assert items[1].images[0].name == "test/2/image.png"
    assert items[1].facts == {
        "subject": "social science", "grade": "grade3", "hint": "Look.", "has_image": True
    }  # fmt: skip
    assert prompt("scienceqa", items[1]).startswith("<image>Context: Look.\nWhich is round?\nA. a")
    assert prompt("scienceqa", items[0]).startswith("Which is round?\nA. a circle\nB. a square\n")
    assert len(read("scienceqa", tmp_path / "original", "options.only_images=true")) == 2
    with pytest.raises(UserError, match="has no split 'minitest'; it has train, test"):
        read("scienceqa", tmp_path / "original", "options.split=minitest")
    rows = [{**published.SCIENCE, "image": image} for image in (png(1), None)]
    write_table(tmp_path / "hub/data/test-00000-of-00001.parquet", rows)
    assert [len(item.images) for item in read("scienceqa", tmp_path / "hub")] == [1, 0]


def test_mmmu_puts_pictures_where_the_text_speaks_of_them(tmp_path: Path) -> None:
    items = {item.id: item for item in written("mmmu", tmp_path)}
    assert sorted(items) == ["validation_Art_Theory_1", "validation_Math_1", "validation_Math_2"]
    assert items["validation_Art_Theory_1"].type == "Art_Theory"
    both = items["validation_Math_1"]
    assert (both.choices, both.correct) == (("a circle", "it's <image 2>"), (1,))
    assert [picture.read() for picture in both.images] == [png(1), png(5)]
    assert prompt("mmmu", both) == (
        "What does <image> show?\nA. a circle\nB. it's <image>\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    free = items["validation_Math_2"]
    assert (free.choices, free.answers) == ((), ("30", "thirty"))
    assert prompt("mmmu", free) == (
        "What does <image> show?\n\nAnswer the question using a single word or phrase."
    )


def test_mmbench_pictures_are_read_from_their_places_in_the_table(tmp_path: Path) -> None:
    items = written("mmbench", tmp_path)
    # Three choices in three rotations; two in two.
    assert [item.id for item in items] == ["241", "241+1", "241+2", "252", "252+1"]
    assert [item.group for item in items] == ["241"] * 3 + ["252"] * 2
    assert items[0].question == "Which shape\nis it?"
    assert [item.choices[item.correct[0]] for item in items] == ["square"] * 3 + ["circle"] * 2
    assert [item.images[0].read() for item in items] == [png(41)] * 3 + [png(52)] * 2
    assert items[0].type == "finegrained_perception"
    assert prompt("mmbench", items[3]).startswith('<image>Look, "here".\nWhich shape\nis it?\nA. ')


def test_mmbench_copies_that_a_file_holds_are_not_rotated_again(tmp_path: Path) -> None:
    row = published.mmbench_row
    rows = [
        row(3, C="", A="circle", B="square", answer="A"),
        row(1_000_003, C="", A="square", B="circle", answer="B", image="3"),
    ]
    published.write_mmbench(tmp_path, rows)
    items = read("mmbench", tmp_path)
    assert [item.id for item in items] == ["3", "1000003"]
    assert [item.group for item in items] == ["3", "3"]
    assert items[0].images == items[1].images
    assert items[1].images[0].read() == png(3)


def test_mmbench_without_answers_says_which_part_has_them(tmp_path: Path) -> None:
    published.write_mmbench(tmp_path, [published.mmbench_row(1, answer="")])
    with pytest.raises(UserError, match="published without answers; use the dev part"):
        read("mmbench", tmp_path)


def test_mme_groups_the_two_questions_of_a_picture(tmp_path: Path) -> None:
    items = written("mme", tmp_path / "original")
    assert len(items) == 12
    assert {item.type for item in items} == {"existence", "landmark", "code_reasoning"}
    assert items[0].group == items[1].group == items[0].images[0].name != items[2].group
    assert [item.answers for item in items[:2]] == [("Yes",), ("No",)]
    row = {"question_id": "OCR/0001.jpg", "image": png(2), "question": "Is it? ", "category": "OCR"}
    rows = [{**row, "answer": "Yes"}, {**row, "answer": "No"}]
    write_table(tmp_path / "hub/data/test-00000-of-00004.parquet", rows)
    first, second = read("mme", tmp_path / "hub")
    assert (first.group, first.type, first.id) == ("OCR/0001", "OCR", "OCR/0001#1")
    assert first.images == second.images


def test_pope_settings_come_from_the_files(tmp_path: Path) -> None:
    items = written("pope", tmp_path)
    assert [item.id for item in items[:2]] == ["adversarial/1", "adversarial/2"]
    assert {item.type for item in items} == {"random", "popular", "adversarial"}
    assert len({item.images[0] for item in items}) == 1
    (only, _) = read("pope", tmp_path, "files.questions=coco_pope_random.json")
    assert (only.id, only.answers) == ("1", ("yes",))


def test_sugarcrepe_pairs_are_choices_whose_order_tells_nothing(tmp_path: Path) -> None:
    items = written("sugarcrepe", tmp_path)
    assert [item.id for item in items] == ["add_att/1", "add_att/2", "swap_obj/1", "swap_obj/2"]
    assert items[0].choices == (words(11), words(1)) and items[0].correct == (1,)
    assert items[1].choices == (words(2), words(12)) and items[1].correct == (0,)
    assert items[0].images == items[2].images


def test_statements_are_true_or_false(tmp_path: Path) -> None:
    items = written("vsr", tmp_path / "vsr")
    assert [(item.type, item.choices[item.correct[0]]) for item in items] == [
        ("above", "false"), ("left of", "true")
    ]  # fmt: skip
    items = written("nlvr", tmp_path / "nlvr")
    assert [item.group for item in items] == ["72", "72", "80"]
    assert [item.choices[item.correct[0]] for item in items] == ["true", "false", "true"]
    assert items[0].images[0].name == "0/dev-72-0-0.png"
    items = written("nlvr2", tmp_path / "nlvr2")
    # Pairs of a set and a sentence belong together: dev-850-?-0.
    assert [item.group for item in items] == ["dev-850-0", "dev-850-0", "dev-850-1"]
    assert [p.name for p in items[1].images] == ["dev-850-1-img0.png", "dev-850-1-img1.png"]


def test_shapes_reads_arrays_of_pixels(tmp_path: Path) -> None:
    items = written("shapes", tmp_path)
    assert [item.answers for item in items] == [("no",), ("yes",)]
    assert Image.open(io.BytesIO(items[0].images[0].read())).size == (30, 30)
    assert prompt("shapes", items[0]) == "<image>is a red shape blue?\nAnswer yes or no."
    (tmp_path / "test.output").write_text("false\n")
    with pytest.raises(UserError, match=r"more questions than test\.output answers"):
        read("shapes", tmp_path)


def test_captions_of_every_layout(tmp_path: Path) -> None:
    coco = written("coco_captions", tmp_path / "coco")
    assert [item.id for item in coco] == ["139", "285"]
    assert coco[0].answers == tuple(words(n) for n in range(5))
    assert prompt("coco_captions", coco[0]) == (
        "<image>Provide a one-sentence caption for the provided image."
    )
    karpathy = written("coco_karpathy", tmp_path / "karpathy")
    assert [item.id for item in karpathy] == ["391895", "483108"]
    tokens = written("flickr8k", tmp_path / "tokens")
    # In the order of the list of the part.
    assert [item.id[:3] for item in tokens] == ["997", "100"]
    assert len(tokens[0].answers) == 5
    (tmp_path / "tokens/Flickr_8k.testImages.txt").unlink()
    with pytest.raises(UserError, match=r"has no Flickr_8k\.testImages\.txt \(splits\)"):
        read("flickr8k", tmp_path / "tokens")
    nocaps = written("nocaps", tmp_path / "nocaps")
    assert [(item.type, len(item.answers)) for item in nocaps] == [
        ("in-domain", 10), ("out-domain", 10)
    ]  # fmt: skip


def test_captions_of_tables_and_csv(tmp_path: Path) -> None:
    row = {
        "image": png(1),
        "image_id": 0,
        "image_file_name": "a.jpg",
        "annotations_captions": ["x"],
    }
    write_table(tmp_path / "nocaps/data/validation-00000-of-00001.parquet", [row])
    (item,) = read("nocaps", tmp_path / "nocaps")
    assert (item.id, item.answers, item.images[0].name) == ("0", ("x",), "a.jpg")
    row = {"question_id": "000000000139.jpg", "image": png(2), "answer": ["a", "b"]}
    write_table(tmp_path / "coco/data/val-00000-of-00001.parquet", [row])
    (item,) = read("coco_captions", tmp_path / "coco")
    assert (item.answers, item.images[0].read()) == (("a", "b"), png(2))
    folder = tmp_path / "flickr30k"
    published.write_picture(folder / "flickr30k-images/10.jpg", 1)
    rows = (
        'raw,sentids,split,filename,img_id\n"[""A dog."", ""Two, dogs.""]","[0, 1]",test,10.jpg,0\n'
    )
    (folder / "flickr_annotations_30k.csv").write_text(rows + '"[""No.""]",[5],train,11.jpg,1\n')
    (item,) = read("flickr30k", folder)
    assert item.answers == ("A dog.", "Two, dogs.")


def test_chair_needs_what_is_annotated(tmp_path: Path) -> None:
    items = written("chair", tmp_path)
    assert [item.facts["objects"] for item in items] == [("dog", "person"), ()]
    (tmp_path / "annotations/instances_val2014.json").unlink()
    with pytest.raises(UserError, match=r"has no annotations/instances_val2014\.json"):
        read("chair", tmp_path)


def test_classes_come_from_folders_and_from_tables(tmp_path: Path) -> None:
    items = written("folder_classification", tmp_path / "folders")
    assert items[0].choices == ("red circle", "square")
    assert [item.type for item in items] == ["red circle"] * 2 + ["square"] * 2
    (tmp_path / "folders/classes.txt").write_text("crimson disc\nbox\n")
    assert read("folder_classification", tmp_path / "folders")[3].type == "box"
    (tmp_path / "folders/classes.txt").write_text("one\n")
    with pytest.raises(UserError, match="has 2 class folders for 1 names"):
        read("folder_classification", tmp_path / "folders")
    tables = written("cifar10", tmp_path / "tables")
    assert [item.type for item in tables] == ["airplane", "cat", "frog"]
    with pytest.raises(UserError, match="is of class 3, and there are 3 names"):
        read("cifar10", tmp_path / "tables", "options.names=[a, b, c]")
