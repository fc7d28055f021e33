"""Readers of questions and captions, one per format; whole chats are in `data.conversations`.

A reader never stops at a bad row: it gives a `Reject` for it and goes on.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from data.documents import Document, Entry, clean_text, load_json, parse_sample
from data.schema import Reject, Sample, sample_key
from vlm.errors import UserError

CAPTION_REQUEST = "Describe the image."


@dataclass(frozen=True, slots=True)
class Question:
    """One question and answer, or one caption, about a picture.

    key, picture_key: of the sample if questions stay apart, or are grouped by picture.
    """

    key: str
    picture_key: str
    picture: str
    text: str
    answer: str
    type: str | None
    answers: tuple[str, ...] = ()


def make_entries(questions: Iterable[Question], group: bool, source: str) -> list[Entry]:
    """Turn questions into samples: one each, or one for all questions of a picture."""
    if not group:
        return [
            Entry(sample_key(q.key), (q.picture,), partial(make_conversation, [q], source))
            for q in questions
        ]
    groups: dict[tuple[str, str], list[Question]] = {}
    for question in questions:
        groups.setdefault((question.picture_key, question.picture), []).append(question)
    return [
        Entry(sample_key(key), (picture,), partial(make_conversation, grouped, source))
        for (key, picture), grouped in groups.items()
    ]


def make_conversation(questions: list[Question], source: str) -> Sample:
    """A chat about one picture, which is shown before the first question.

    Raises:
        UserError: a text that is no valid Unicode.
    """
    messages: list[dict[str, Any]] = []
    for question in questions:
        messages.append({"role": "user", "content": [{"type": "text", "text": question.text}]})
        answer = [{"type": "text", "text": question.answer}]
        messages.append({"role": "assistant", "content": answer})
    messages[0]["content"].insert(0, {"type": "image"})
    turns = [{"type": q.type, "answers": q.answers} for q in questions]
    return parse_sample({"messages": messages, "turns": turns, "source": source})


def read_captions(document: Document) -> Iterator[Question | Reject]:
    """Rows with `image` or `file_name` and `caption` or `captions` (one text or a list)."""
    listed: list[tuple[str, str, str]] = []
    for place, row in document.rows:
        picture = row.get("image") or row.get("file_name") if isinstance(row, dict) else None
        if not isinstance(picture, str):
            yield Reject(place, "no picture: neither `image` nor `file_name` names one")
            continue
        found = row.get("captions") or row.get("caption")
        captions = found if isinstance(found, list) else [found]
        for caption in captions or [None]:
            if text := clean_text(caption):
                listed.append((picture, text, place))
            else:
                yield Reject(place, f"no caption: {picture} has an empty or missing one")
    pictures = {picture for picture, _, _ in listed}
    stems = Counter(_stem(picture) for picture in pictures)
    for picture, text, place in listed:
        # a.jpg and a.png are two pictures: only then does the extension enter the key.
        key = _stem(picture) if stems[_stem(picture)] == 1 else picture
        yield Question(place, key, picture, CAPTION_REQUEST, text, "caption")


def read_coco(document: Document) -> Iterator[Question | Reject]:
    """COCO captions: `images` with `id` and `file_name`, `annotations` with `caption`."""
    name = document.path.name
    captions: dict[str, list[str]] = {}
    for annotation in _objects(document.header["annotations"]):
        text = clean_text(annotation.get("caption"))
        if text:
            captions.setdefault(str(annotation.get("image_id")), []).append(text)
        else:
            yield Reject(f"{name} annotation {annotation.get('id')}", "no caption")
    seen = set()
    for image in _objects(document.header["images"]):
        key, picture = str(image.get("id")), image.get("file_name")
        if image.get("id") is None or not isinstance(picture, str):
            yield Reject(f"{name} image {key}", "no picture: `id` or `file_name` is missing")
        elif key in seen:
            yield Reject(key, "duplicate key: another image has the same id")
        elif key not in captions:
            yield Reject(key, f"no caption: {picture} has none")
        else:
            for text in captions[key]:
                yield Question(key, key, picture, CAPTION_REQUEST, text, "caption")
        seen.add(key)
    for key in captions:
        if key not in seen:
            yield Reject(key, "no picture: `images` does not list the caption's image_id")


def read_vqa2(document: Document) -> Iterator[Question | Reject]:
    """VQA v2: a file of questions, and a file of annotations beside it.

    The most common answer is the one to learn, all ten are accepted; the turn's type is the
    answer type (`yes/no`, `number`, `other`), by which VQA v2 is reported.
    """
    questions, annotations = _vqa2_pair(document)
    subtype = questions.get("data_subtype", "train2014")  # v2 has it in every file
    by_question = {str(row.get("question_id")): row for row in _objects(annotations["annotations"])}
    for row in _objects(questions["questions"]):
        key, image_id = str(row.get("question_id")), row.get("image_id")
        annotation = by_question.get(key)
        text = clean_text(row.get("question"))
        if annotation is None or not text or not isinstance(image_id, int):
            missing = "annotation" if annotation is None else "text or image_id"
            yield Reject(key, f"no {missing}: question {key} in {document.path.name}")
            continue
        answers = [clean_text(a.get("answer")) for a in _objects(annotation.get("answers"))]
        counts = Counter(answer for answer in answers if answer)
        best = clean_text(annotation.get("multiple_choice_answer"))
        best = best or (counts.most_common(1)[0][0] if counts else "")
        if not best:
            yield Reject(key, f"no answer: question {key}")
            continue
        yield Question(
            key=key,
            picture_key=str(image_id),
            picture=f"COCO_{subtype}_{image_id:012d}.jpg",
            text=text,
            answer=best,
            type=clean_text(annotation.get("answer_type")) or None,
            answers=tuple(answer for answer in answers if answer),
        )


def read_questions(document: Document) -> Iterator[Question | Reject]:
    """Rows with `image` or `file_name`, `question`, and `answer` or `answers`.

    `answers` is a list of texts, or of objects with an `answer`, as VQA v2 has: the most common
    is the one to learn unless `answer` or `multiple_choice_answer` names it, and all are accepted.
    `type`, `question_type` or `answer_type` becomes the turn's type.
    """
    for index, (place, row) in enumerate(document.rows):
        row = row if isinstance(row, dict) else {}
        picture, text = row.get("image") or row.get("file_name"), clean_text(row.get("question"))
        if not isinstance(picture, str) or not text:
            missing = "question" if isinstance(picture, str) else "picture"
            yield Reject(place, f"no {missing}: the row names none")
            continue
        answers, best = _answers(row)
        if not best:
            yield Reject(place, "no answer: neither `answer` nor `answers` has one")
            continue
        given = row.get("question_id", row.get("id"))
        types = (clean_text(row.get(name)) for name in ("type", "question_type", "answer_type"))
        yield Question(
            key=str(given) if given is not None else f"{document.path.stem}-{index}",
            picture_key=_stem(picture),
            picture=picture,
            text=text,
            answer=best,
            type=next(filter(None, types), None),
            answers=answers,
        )


def read_easy_vqa(document: Document) -> Iterator[Question | Reject]:
    """easy-VQA: a list of `[question, answer, image id]`; the pictures are images/ID.png."""
    numbers: Counter[int] = Counter()
    for place, row in document.rows:
        match row:
            case [str(text), str(answer), int(image_id)] if text.strip() and answer.strip():
                numbers[image_id] += 1
                yield Question(
                    key=f"{image_id}-{numbers[image_id]}",
                    picture_key=str(image_id),
                    picture=f"images/{image_id}.png",
                    text=text.strip(),
                    answer=answer.strip(),
                    type=easy_vqa_type(text),
                )
            case _:
                yield Reject(place, "bad row: not [question, answer, image id]")


def easy_vqa_type(question: str) -> str:
    """The kind of an easy-VQA question: its text is all that the data give.

    `shape` and `colour` ask for a name; the yes/no questions are split by what they ask about and
    by negation, for these differ in how often the answer is yes.

    >>> easy_vqa_type("is there not a red shape?")
    'has no colour'
    """
    text = question.lower()
    if re.match(r"what\b.*\bcolou?r\b", text):
        return "colour"
    if text.startswith("what"):
        return "shape"
    about = "colour" if re.search(r"\bshape\b", text) else "shape"
    return f"has no {about}" if re.search(r"\b(no|not)\b", text) else f"has {about}"


def _answers(row: dict[str, Any]) -> tuple[tuple[str, ...], str]:
    """Every accepted answer of a row, and the one to learn; nothing if there is none."""
    listed = row.get("answers")
    found = [item.get("answer") if isinstance(item, dict) else item for item in listed or []]
    answers = tuple(filter(None, map(clean_text, found if isinstance(listed, list) else [listed])))
    best = clean_text(row.get("answer")) or clean_text(row.get("multiple_choice_answer"))
    return answers, best or (Counter(answers).most_common(1)[0][0] if answers else "")


def _objects(listed: Any) -> Iterator[dict[str, Any]]:
    """The JSON objects of a list; anything else in it reads as an object without fields."""
    for item in listed or []:
        yield item if isinstance(item, dict) else {}


def _stem(picture: str) -> str:
    return str(PurePosixPath(picture).with_suffix("")) if PurePosixPath(picture).name else picture


def _vqa2_pair(document: Document) -> tuple[dict[str, Any], dict[str, Any]]:
    path, header = document.path, document.header
    has_questions = "questions" in header
    given, wanted = ("questions", "annotations")[:: 1 if has_questions else -1]
    candidates = [
        other
        for other in sorted(path.parent.glob("*.json"))
        if other != path and _vqa2_name(other) == _vqa2_name(path) and wanted in other.name
    ]
    if len(candidates) != 1:
        raise UserError(
            f"{path} holds the {given} of VQA v2; the {wanted} must lie beside it in one file of "
            f"the same name with `{wanted}` in it"
        )
    other = load_json(candidates[0])
    if not isinstance(other, dict) or wanted not in other:
        raise UserError(f"{candidates[0]} has no `{wanted}`")
    return (header, other) if has_questions else (other, header)


def _vqa2_name(path: Path) -> str:
    # v2_OpenEnded_mscoco_train2014_questions.json, v2_mscoco_train2014_annotations.json
    return re.sub(r"OpenEnded_|questions|annotations", "", path.name)
