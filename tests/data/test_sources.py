import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data.pictures import find_pictures
from data.readers import easy_vqa_type
from data.schema import RawSample, Reject
from data.sources import open_source
from data.splits import hold_out_last
from vlm.errors import UserError


def picture(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (2, 2), value).save(buffer, "PNG")
    return buffer.getvalue()


def write_pictures(folder: Path, *names: str) -> None:
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(index))


def write_tar(path: Path, *names: str) -> None:
    with tarfile.open(path, "w") as tar:
        for index, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size = len(picture(index))
            tar.addfile(member, io.BytesIO(picture(index)))


def write_jsonl(path: Path, *rows: Any) -> Path:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def read(source: Path, **options: Any) -> tuple[list[RawSample], list[Reject]]:
    items = list(open_source(source, **options).read())
    kept = [item for item in items if isinstance(item, RawSample)]
    return kept, [item for item in items if isinstance(item, Reject)]


def talk(raw: RawSample) -> list[str]:
    """The chat in short: `[image] question`, `answer`, ..."""
    shown = ["[image] " * sum(p.type == "image" for p in m.content) for m in raw.sample.messages]
    return [mark + m.text for mark, m in zip(shown, raw.sample.messages, strict=True)]


def types(raw: RawSample) -> list[str | None]:
    return [turn.type for turn in raw.sample.turns]


ASK = "Describe the image."


def test_captions_jsonl_gives_one_sample_for_all_captions_of_a_picture(tmp_path: Path) -> None:
    write_pictures(tmp_path, "images/a.png", "b.png")
    write_jsonl(
        tmp_path / "captions.jsonl",
        {"image": "images/a.png", "captions": ["One. ", "Two <|image|>."]},
        {"file_name": "b.png", "caption": "Bee."},
        {"image": "images/a.png", "caption": "Three."},
    )
    (a, b), rejects = read(tmp_path)
    assert not rejects and open_source(tmp_path).format == "captions"
    assert (a.key, b.key) == ("images/a", "b")
    assert talk(a) == [f"[image] {ASK}", "One.", ASK, "Two <|image|>.", ASK, "Three."]
    assert types(a) == ["caption"] * 3 and a.images == [picture(0)]
    assert talk(b) == [f"[image] {ASK}", "Bee."]


def test_captions_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    write_pictures(tmp_path, "images/a.png")
    text = '\ufeffImage, Caption\r\na.png,"Says ""hi"",\nthen goes."\r\na.png,\r\n,lost\r\n'
    (tmp_path / "captions.csv").write_bytes(text.encode())
    (a,), rejects = read(tmp_path)
    assert talk(a)[1] == 'Says "hi",\nthen goes.' and a.images == [picture()]
    assert [(r.key, r.kind) for r in rejects] == [
        ("captions.csv:4", "no caption"),
        ("captions.csv:5", "no picture"),
    ]


def test_bad_rows_of_captions_are_rejected_alone(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png")
    write_jsonl(
        tmp_path / "captions.jsonl",
        {"image": "a.png", "captions": ["Good.", " ", None]},
        "{broken",
        {"image": "gone.png", "caption": "Where?"},
        {"image": "b.png", "captions": []},
        {"caption": "of nothing"},
        ["not", "an", "object", "but a list"],
        {"image": "surrogate.png", "caption": "\ud800"},
    )
    (a,), rejects = read(tmp_path)
    assert talk(a)[1:] == ["Good."]
    assert [(r.key, r.kind) for r in rejects] == [
        ("captions.jsonl:2", "bad JSON"),
        ("captions.jsonl:1", "no caption"),
        ("captions.jsonl:1", "no caption"),
        ("captions.jsonl:4", "no caption"),
        ("captions.jsonl:5", "no picture"),
        ("captions.jsonl:6", "no picture"),
        ("gone", "missing picture"),
        ("surrogate", "missing picture"),
    ]


def test_pictures_that_differ_in_the_extension_only_have_different_keys(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png", "a.gif", "b.png")
    rows = [{"image": name, "caption": name} for name in ("a.png", "a.gif", "b.png")]
    kept, _ = read(write_jsonl(tmp_path / "captions.jsonl", *rows))
    assert [raw.key for raw in kept] == ["a%2Epng", "a%2Egif", "b"]


def test_split_keeps_its_rows_and_an_unknown_one_lists_what_there_is(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png", "b.png")
    path = write_jsonl(
        tmp_path / "any.jsonl",
        {"image": "a.png", "caption": "A.", "split": "train"},
        {"image": "b.png", "caption": "B.", "split": "val"},
    )
    (b,), _ = read(path, split="val")
    assert b.key == "b"
    with pytest.raises(UserError, match="no rows with split 'dev'; its splits: train, val"):
        open_source(path, split="dev")


def test_chat_jsonl_keeps_turns_order_and_several_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png", "b.png")
    image, text = {"type": "image", "text": None}, {"type": "text", "text": "which?"}
    write_jsonl(
        tmp_path / "chat.jsonl",
        {
            "id": "x.1",
            "images": ["b.png", "a.png"],
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [image, text, image]},
                {"role": "assistant", "content": "<|image|>"},
            ],
            "turns": [{"type": "compare", "answers": ["left", "first"]}],
            "source": "album",
        },
        {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
        {"messages": [{"role": "user", "content": "2+2?"}], "images": []},
        {"messages": "hello"},
        {"images": ["a.png"]},
        {"messages": [], "images": "a.png"},
        {"messages": [], "images": [1]},
    )
    (two, none), rejects = read(tmp_path)
    assert two.images == [picture(1), picture(0)]
    assert two.key == "x%2E1" and two.sample.source == "album"
    assert talk(two) == ["Be brief.", "[image] [image] which?", "<|image|>"]
    assert two.sample.accepted_answers == (("left", "first"),) and types(two) == ["compare"]
    assert talk(none) == ["2+2?", "4"] and none.images == [] and none.key == "chat-1"
    assert len(rejects) == 5 and {reject.kind for reject in rejects} == {"bad sample"}


def coco(tmp_path: Path) -> Path:
    content = {
        "images": [{"id": 9, "file_name": "9.png"}, {"id": 2, "file_name": "2.png"}, "?"],
        "annotations": [
            {"image_id": 2, "id": 1, "caption": "Two."},
            {"image_id": 9, "id": 2, "caption": "Nine."},
            {"image_id": 2, "id": 3, "caption": "Deux."},
            {"image_id": 7, "id": 4, "caption": "Lost."},
            {"image_id": 9, "id": 5},
            "?",
        ],
    }
    content["images"].append({"id": 5, "file_name": "5.png"})
    content["images"].append({"id": 9, "file_name": "9.png"})
    path = tmp_path / "captions_val2017.json"
    path.write_text(json.dumps(content))
    write_tar(tmp_path / "val2017.tar", "val2017/9.png", "val2017/2.png", "val2017/5.png")
    return path


def test_coco_captions_are_grouped_by_image_and_read_from_a_tar(tmp_path: Path) -> None:
    (nine, two), rejects = read(coco(tmp_path))
    assert (nine.key, two.key) == ("9", "2")
    assert talk(two) == [f"[image] {ASK}", "Two.", ASK, "Deux."]
    assert nine.images == [picture(0)] and two.images == [picture(1)]
    assert sorted((reject.key, reject.kind) for reject in rejects) == [
        ("5", "no caption"),
        ("7", "no picture"),
        ("9", "duplicate key"),
        ("captions_val2017.json annotation 5", "no caption"),
        ("captions_val2017.json annotation None", "no caption"),
        ("captions_val2017.json image None", "no picture"),
    ]


def vqa2(tmp_path: Path) -> Path:
    questions = [
        {"image_id": 9, "question": "How many?", "question_id": 9000},
        {"image_id": 9, "question": "Which colour?", "question_id": 9001},
        {"image_id": 2, "question": "Is it?", "question_id": 2000},
        {"image_id": 2, "question": "Why?", "question_id": 2001},
        "?",
    ]
    answers = {9000: ["2"] * 7 + ["two"] * 3, 9001: ["red"] * 9 + ["blue"], 2000: ["yes"] * 10}
    annotations = [
        {
            "question_id": question_id,
            "multiple_choice_answer": given[0],
            "answers": [{"answer": text} for text in given],
            "question_type": "none of the above",
            "answer_type": kind,
        }
        for (question_id, given), kind in zip(
            answers.items(), ["number", "other", "yes/no"], strict=True
        )
    ]
    path = tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json"
    path.write_text(json.dumps({"data_subtype": "val2014", "questions": questions}))
    beside = tmp_path / "v2_mscoco_val2014_annotations.json"
    beside.write_text(json.dumps({"annotations": annotations}))
    write_pictures(
        tmp_path / "images",
        "COCO_val2014_000000000009.jpg",
        "COCO_val2014_000000000002.jpg",
    )
    return path


def test_vqa2_joins_questions_with_annotations(tmp_path: Path) -> None:
    path = vqa2(tmp_path)
    for source in (path, tmp_path, tmp_path / "v2_mscoco_val2014_annotations.json"):
        (first, second, third), rejects = read(source)
        assert (first.key, second.key, third.key) == ("9000", "9001", "2000")
        assert talk(first) == ["[image] How many?", "2"] and types(first) == ["number"]
        assert first.sample.accepted_answers == (("2",) * 7 + ("two",) * 3,)
        assert [r.key for r in rejects] == ["2001", "None"]
        assert {r.kind for r in rejects} == {"no annotation"}


def test_grouping_puts_all_questions_of_a_picture_together(tmp_path: Path) -> None:
    (nine, two), _ = read(vqa2(tmp_path), group_by_image=True)
    assert (nine.key, two.key) == ("9", "2")
    assert talk(nine) == ["[image] How many?", "2", "Which colour?", "red"]
    assert types(nine) == ["number", "other"] and len(nine.images) == 1
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = write_jsonl(tmp_path / "chat.jsonl", chat)
    with pytest.raises(UserError, match="--group-by-image is for questions"):
        open_source(path, group_by_image=True)


def test_vqa2_without_its_other_file_says_what_is_missing(tmp_path: Path) -> None:
    path = vqa2(tmp_path)
    (tmp_path / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(UserError, match="the annotations must lie beside it"):
        open_source(path)


def test_llava_marks_become_image_parts(tmp_path: Path) -> None:
    write_pictures(tmp_path, "coco/a.png", "b.png")

    def row(number: int, image: Any, *turns: str) -> dict[str, Any]:
        speakers = ["human", "gpt"] * len(turns)
        said = [{"from": who, "value": v} for who, v in zip(speakers, turns, strict=False)]
        return {"id": number, "conversations": said} | ({"image": image} if image else {})

    rows = [
        row(1, "coco/a.png", "<image>\nWhat is it?", "An <image>.", "Sure?", "Yes."),
        row(2, ["b.png", "coco/a.png"], "<image> or <image>?", "Both."),
        row(3, "b.png", "No mark here.", "Right."),
        row(4, None, "2+2?", "4"),
        row(5, 17, "<image>?", "?"),
        {"id": 6, "conversations": [{"from": "robot", "value": "x"}, "y"]},
        {"id": 7},
    ]
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    (one, two, three, four), rejects = read(tmp_path)
    assert talk(one) == ["[image] What is it?", "An <image>.", "Sure?", "Yes."]
    assert one.sample.messages[0].content[0].type == "image" and one.key == "1"
    assert [p.type for p in two.sample.messages[0].content] == ["image", "text", "image", "text"]
    assert two.images == [picture(1), picture(0)]
    assert talk(three)[0] == "[image] No mark here." and talk(four) == ["2+2?", "4"]
    assert len(rejects) == 3 and {reject.kind for reject in rejects} == {"bad sample"}


def easy_vqa(tmp_path: Path, num_pictures: int = 12) -> Path:
    rows = [
        row
        for index in range(num_pictures)
        for row in (["what shape is present?", "circle", index], ["is it red?", "no", index])
    ]
    path = tmp_path / "train_questions.json"
    path.write_text(json.dumps(rows))
    write_tar(tmp_path / "train_images.tar", *[f"images/{i}.png" for i in range(num_pictures)])
    write_tar(tmp_path / "other.tar", "x.png")
    return path


def test_easy_vqa_is_told_by_its_rows(tmp_path: Path) -> None:
    path = easy_vqa(tmp_path, 2)
    kept, rejects = read(path)
    assert [raw.key for raw in kept] == ["0-1", "0-2", "1-1", "1-2"] and not rejects
    (first, second), _ = read(tmp_path, group_by_image=True)
    assert (first.key, second.key) == ("0", "1") and second.images == [picture(1)]
    assert talk(first) == ["[image] what shape is present?", "circle", "is it red?", "no"]
    path.write_text(json.dumps([["q?", "a", 0], ["q?", None, 0], ["q?", "a", "1"], 3]))
    kept, rejects = read(path)
    assert len(kept) == 1 and [reject.kind for reject in rejects] == ["bad row"] * 3
    assert rejects[0].key == "train_questions.json item 1"


def test_easy_vqa_types_follow_from_the_text() -> None:
    expected = {
        "what shape does the image contain?": "shape",
        "what is the blue shape?": "shape",
        "what color is the triangle?": "colour",
        "what is the color of the shape?": "colour",
        "is there a triangle in the image?": "has shape",
        "does the image contain a gray shape?": "has colour",
        "is there not a circle?": "has no shape",
        "is no red shape present?": "has no colour",
        "does the image not contain a rectangle?": "has no shape",
    }
    assert {question: easy_vqa_type(question) for question in expected} == expected


def test_the_last_pictures_by_number_are_held_out(tmp_path: Path) -> None:
    source = open_source(easy_vqa(tmp_path))
    stays, held = hold_out_last(source, 3).values()
    assert [raw.key for raw in held.read()] == [f"{i}-{n}" for i in (9, 10, 11) for n in (1, 2)]
    assert {entry.pictures for entry in stays.entries}.isdisjoint(
        entry.pictures for entry in held.entries
    )
    assert len(stays.entries) == 18
    for wrong in (0, 12, -1):
        with pytest.raises(UserError, match=f"must be from 1 to 11, not {wrong}"):
            hold_out_last(source, wrong)


def test_a_held_out_picture_never_stays_through_a_sample_of_several(tmp_path: Path) -> None:
    write_pictures(tmp_path, "1.png", "2.png", "3.png")

    def row(*names: str) -> dict[str, Any]:
        user = {"role": "user", "content": [{"type": "image"}] * len(names)}
        return {"images": names, "messages": [user, {"role": "assistant", "content": "a"}]}

    path = write_jsonl(tmp_path / "chat.jsonl", row("1.png"), row("1.png", "3.png"), row("2.png"))
    stays, held = hold_out_last(open_source(path), 1).values()
    assert [entry.pictures for entry in stays.entries] == [("1.png",), ("2.png",)]
    assert [entry.pictures for entry in held.entries] == [("1.png", "3.png")]


def test_first_keeps_that_many_samples(tmp_path: Path) -> None:
    assert [raw.key for raw in open_source(easy_vqa(tmp_path)).first(2).read()] == ["0-1", "0-2"]


def test_what_cannot_be_told_lists_the_formats(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"a": 1}')
    formats = "captions .*; chat .*; coco .*; vqa2 .*; llava .*; easy-vqa "
    with pytest.raises(UserError, match=f"cannot tell what .*data.json holds; .*{formats}"):
        open_source(tmp_path)
    with pytest.raises(UserError, match=f"no format 'coc': .*{formats}"):
        open_source(tmp_path, format_name="coc")
    with pytest.raises(UserError, match=f"does not exist: .*{formats}"):
        open_source(tmp_path / "none")
    with pytest.raises(UserError, match=r"data\.json is not coco \(KeyError: 'annotations'\)"):
        open_source(tmp_path, format_name="coco")
    (tmp_path / "more.json").write_text("[]")
    with pytest.raises(UserError, match=r"there are data\.json, more\.json: give the one"):
        open_source(tmp_path)
    (tmp_path / "data.json").write_text("{")
    with pytest.raises(UserError, match=r"data\.json cannot be read as JSON"):
        open_source(tmp_path / "data.json")
    (tmp_path / "captions.csv").write_bytes(b"image,caption\na.png,\xff\xfe\n")
    with pytest.raises(UserError, match=r"captions\.csv cannot be read"):
        open_source(tmp_path)


def test_pictures_are_found_where_they_are_said_to_be(tmp_path: Path) -> None:
    source = tmp_path / "here/any.jsonl"
    write_pictures(tmp_path, "here/near.png", "far/sub/x.png", "secret.png")
    write_tar(tmp_path / "t.tar", "a/x.png", "b/x.png", "./b/y.png")
    far = find_pictures(source, tmp_path / "far")
    assert far.read("sub/x.png") == picture(1)
    tar = find_pictures(source, tmp_path / "t.tar")
    assert tar.read("b/x.png") == picture(1) and tar.read("y.png") == picture(2)
    with pytest.raises(UserError, match=r"missing picture: x\.png is not in .*t\.tar"):
        tar.read("x.png")  # two of that name
    near = find_pictures(source, None)
    assert near.read("near.png") == picture(0)
    assert near.read(str(tmp_path / "here/near.png")) == picture(0)
    for outside in ("../secret.png", str(tmp_path / "secret.png"), "a/../../secret.png"):
        with pytest.raises(UserError, match="no path may leave it"):
            near.read(outside)
    with pytest.raises(UserError, match=r"--images .*nowhere does not exist"):
        find_pictures(source, tmp_path / "nowhere")
    (tmp_path / "bad.tar").write_bytes(b"x" * 2000)
    with pytest.raises(UserError, match=r"bad\.tar cannot be read as an uncompressed tar"):
        find_pictures(source, tmp_path / "bad.tar")
