"""Readers of whole conversations: chat JSONL, LLaVA instruct, The Cauldron."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from data.documents import Document, Entry, clean_text, parse_sample
from data.schema import Reject, Sample, sample_key
from vlm.errors import UserError

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


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


def read_cauldron(document: Document) -> Iterator[Entry | Reject]:
    """The Cauldron: `images`, all shown first, and `texts` of `user`, `assistant`, `source`."""
    for index, (place, row) in enumerate(document.rows):
        if not isinstance(row, dict) or not isinstance(row.get("texts"), list):
            yield Reject(place, "bad sample: no `texts`")
            continue
        pictures = _names(row.get("images"))
        if pictures is None:
            yield Reject(place, "bad sample: `images` must be a list of pictures")
            continue
        build = partial(_cauldron_sample, row["texts"], len(pictures))
        yield Entry(_row_key(row, document, index), pictures, build)


def _names(value: Any) -> tuple[str, ...] | None:
    """Picture names out of a name, a list of names, or nothing; None for something else."""
    listed = [value] if isinstance(value, str) else value or []
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        return None
    return tuple(listed)


def _row_key(row: dict[str, Any], document: Document, index: int) -> str:
    given = row.get("id")
    return sample_key(str(given) if given is not None else f"{document.path.stem}-{index}")


def _chat_sample(row: dict[str, Any]) -> Sample:
    messages = row["messages"]
    if isinstance(messages, list):
        messages = [_with_parts(message) for message in messages]
    optional = {name: row[name] for name in ("turns", "source") if row.get(name) is not None}
    return parse_sample({"messages": messages, **optional})


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
    return parse_sample({"messages": messages, "source": "llava"})


def _llava_parts(text: str) -> list[dict[str, str]]:
    parts: list[dict[str, str]] = []
    for piece in re.split("(<image>)", text):
        if piece == "<image>":
            parts.append({"type": "image"})
        elif piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    return parts


def _cauldron_sample(texts: list[Any], num_pictures: int) -> Sample:
    messages: list[dict[str, Any]] = []
    sources = []
    for turn in texts:
        turn = turn if isinstance(turn, dict) else {}
        for role in ("user", "assistant"):
            part = {"type": "text", "text": clean_text(turn.get(role))}
            messages.append({"role": role, "content": [part]})
        sources.append(clean_text(turn.get("source")))
    if messages:
        messages[0]["content"] = [{"type": "image"}] * num_pictures + messages[0]["content"]
    source = ", ".join(dict.fromkeys(name for name in sources if name))
    return parse_sample({"messages": messages, "source": source or "cauldron"})
