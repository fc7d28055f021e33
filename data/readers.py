"""One reader per format: what a file lists, as entries that can still be filtered and grouped.

A reader never stops at a bad row: it gives a `Reject` for it and goes on.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from data.schema import Reject, Sample, sample_key
from vlm.errors import UserError

CAPTION_REQUEST = "Describe the image."
ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


class Row(NamedTuple):
    """One row of a file, and where it stands: `captions.jsonl:17`."""

    place: str
    value: Any


@dataclass(frozen=True)
class Document:
    """A parsed file.

    rows: of JSONL, CSV, or a JSON list.
    header: of a file that is one JSON object.
    rejects: rows that could not be parsed.
    """

    path: Path
    rows: list[Row]
    header: dict[str, Any]
    rejects: list[Reject]


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample that can be made: `pictures` are names, `build` raises UserError if it is bad."""

    key: str
    pictures: tuple[str, ...]
    build: Callable[[], Sample]


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
    return _parse({"messages": messages, "turns": turns, "source": source})


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


def read_chat(document: Document) -> Iterator[Entry | Reject]:
    """Rows with `messages`, `images` (paths), and if wanted `id`, `turns`, `source`."""
    for index, (place, row) in enumerate(document.rows):
        if not isinstance(row, dict) or "messages" not in row:
            yield Reject(place, "bad sample: no `messages`")
            continue
        pictures = _names(row.get("images"))
        if pictures is None:
            yield Reject(place, "bad sample: `images` must be a list of paths")
            continue
        yield Entry(_row_key(row, document, index), pictures, partial(_chat_sample, row))


def read_llava(document: Document) -> Iterator[Entry | Reject]:
    """LLaVA instruct: `conversations` of `from` and `value`, `<image>` marking the picture."""
    for index, (place, row) in enumerate(document.rows):
        if not isinstance(row, dict) or not isinstance(row.get("conversations"), list):
            yield Reject(place, "bad sample: no `conversations`")
            continue
        pictures = _names(row.get("image"))
        if pictures is None:
            yield Reject(place, "bad sample: `image` must be a path or a list of paths")
            continue
        build = partial(_llava_sample, row["conversations"], bool(pictures))
        yield Entry(_row_key(row, document, index), pictures, build)


def clean_text(value: Any) -> str:
    """The text without blanks around it; nothing if there is no text."""
    return value.strip() if isinstance(value, str) else ""


def load_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: it is not JSON; says where.
    """
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error


def _objects(listed: Any) -> Iterator[dict[str, Any]]:
    """The JSON objects of a list; anything else in it reads as an object without fields."""
    for item in listed or []:
        yield item if isinstance(item, dict) else {}


def _names(value: Any) -> tuple[str, ...] | None:
    """Picture names out of a name, a list of names, or nothing; None for something else."""
    listed = [value] if isinstance(value, str) else value or []
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        return None
    return tuple(listed)


def _stem(picture: str) -> str:
    return str(PurePosixPath(picture).with_suffix("")) if PurePosixPath(picture).name else picture


def _row_key(row: dict[str, Any], document: Document, index: int) -> str:
    given = row.get("id")
    return sample_key(str(given) if given is not None else f"{document.path.stem}-{index}")


def _chat_sample(row: dict[str, Any]) -> Sample:
    messages = row["messages"]
    if isinstance(messages, list):
        messages = [_with_parts(message) for message in messages]
    optional = {name: row[name] for name in ("turns", "source") if row.get(name) is not None}
    return _parse({"messages": messages, **optional})


def _with_parts(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if isinstance(content, list):
        # Tables saved as JSON give every part every column, the unused ones null.
        content = [
            {name: value for name, value in part.items() if value is not None}
            if isinstance(part, dict)
            else part
            for part in content
        ]
    return {**message, "content": content}


def _llava_sample(conversations: list[Any], has_pictures: bool) -> Sample:
    messages: list[dict[str, Any]] = []
    for turn in conversations:
        turn = turn if isinstance(turn, dict) else {}
        role, text = ROLES.get(str(turn.get("from"))), clean_text(turn.get("value"))
        if role is None:
            raise UserError(f"bad sample: `from` must be one of {', '.join(ROLES)}")
        parts = _llava_parts(text) if role == "user" else [{"type": "text", "text": text}]
        messages.append({"role": role, "content": parts})
    users = [message["content"] for message in messages if message["role"] == "user"]
    marked = any(part["type"] == "image" for content in users for part in content)
    if has_pictures and users and not marked:
        users[0].insert(0, {"type": "image"})
    return _parse({"messages": messages, "source": "llava"})


def _llava_parts(text: str) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for piece in re.split("(<image>)", text):
        if piece == "<image>":
            parts.append({"type": "image"})
        elif piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def _parse(data: dict[str, Any]) -> Sample:
    try:
        return Sample.parse(data)
    except UserError as error:
        raise UserError(f"bad sample: {error}") from None


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
