"""Chat templates: where a chat's words and images stand between special tokens.

A template never sees the words. It is rendered once for each structure of a chat (roles, and what
kinds of parts messages have) with placeholders, and the result is split at them: what the template
wrote may hold special tokens, what people wrote may not.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal

from transformers.utils.chat_template_utils import render_jinja_template

from vlm.chat.files import CONFIG_FILE, read_json_object, read_utf8
from vlm.chat.tokenizer import EOT_TOKEN, IMAGE_TOKEN, Tokenizer
from vlm.errors import UserError

PartKind = Literal["text", "image"]
# Of each message its role and the kinds of its parts.
Structure = tuple[tuple[str, tuple[PartKind, ...]], ...]

TEMPLATE_FILE = "chat_template.jinja"
OLD_TEMPLATE_FILE = "chat_template.json"  # of transformers' processors before version 4.52

# The form of Llama 3 and 3.2 Vision. It starts with the vocabulary's own first token, if any.
LLAMA3_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}
                {{- '<|image|>' }}
            {%- else %}
                {{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
LLAMA3_TEMPLATE_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", EOT_TOKEN)

# A placeholder is a number between private-use characters; around them is whitespace of a kind that
# no template writes (the ASCII unit separator): where it is gone, the template trims the text.
PLACEHOLDER = "\x1f\ue000{}\ue001\x1f"
FOUND_PLACEHOLDER = re.compile("(\x1f?)\ue000([0-9]+)\ue001(\x1f?)")


@dataclass(frozen=True)
class Slot:
    """The place of a text part, and whether the template trims the text there.

    index: which of the chat's text parts, counted through all messages.
    message: which message it belongs to.
    """

    index: int
    message: int
    trims_left: bool = False
    trims_right: bool = False


class ChatTemplate:
    """A Jinja template in the form of Hugging Face's, rendered in transformers' sandbox.

    source: the template. It sees `messages`, `add_generation_prompt` and the named tokens.
    """

    def __init__(self, source: str, named_tokens: Mapping[str, str] | None = None) -> None:
        self.source = source
        self._named_tokens: dict[str, Any] = dict(named_tokens or {})

    def skeleton(
        self, structure: Structure, add_generation_prompt: bool = False
    ) -> tuple[str | Slot, ...]:
        """Return what the template writes, in order, with a slot for each text part.

        Raises:
            UserError: the template fails, refuses such a chat, or leaves a part out.
        """
        numbers = count()
        contents = [
            [
                {"type": "image"}
                if kind == "image"
                else {"type": "text", "text": PLACEHOLDER.format(next(numbers))}
                for kind in kinds
            ]
            for _, kinds in structure
        ]
        reasons = []
        # Templates differ in what they accept as a message's content. The last form serves those
        # made for text alone.
        for form in (_plain_or_parts, _parts, _plain):
            messages = [
                {"role": role, "content": form(content)}
                for (role, _), content in zip(structure, contents, strict=True)
            ]
            try:
                return _split(self._render(messages, add_generation_prompt), structure)
            except _NotShownError as error:
                reasons.append(str(error))
        shown = ", ".join(f"{role} ({' + '.join(kinds)})" for role, kinds in structure)
        raise UserError(f"the chat template does not suit the messages {shown}: {reasons[0]}")

    def save(self, folder: Path) -> None:
        """Write the template into its own file, as transformers reads it."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TEMPLATE_FILE).write_text(self.source, "utf-8")

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        try:
            rendered = render_jinja_template(
                conversations=[messages],
                chat_template=self.source,
                add_generation_prompt=add_generation_prompt,
                # Qwen3's writes an empty thought before an answer; before one to come, if told so.
                enable_thinking=False,
                **self._named_tokens,
            )
        except Exception as error:  # a template is foreign code: all that it raises is its fault
            raise _NotShownError(f"{type(error).__name__}: {error}") from error
        return rendered[0][0]


def read_chat_format(folder: Path) -> tuple[Tokenizer, ChatTemplate]:
    """Read a folder's tokenizer and its template, from a file of its own or the tokenizer's config.

    A folder without a template, a base model's, gets Llama 3's form, and its tokenizer those
    tokens of it that it lacks.

    Raises:
        UserError: a file is missing or damaged.
    """
    source = _template_source(folder)
    needed = LLAMA3_TEMPLATE_TOKENS if source is None else ()
    tokenizer = Tokenizer.from_folder(folder, needed)
    source = LLAMA3_TEMPLATE if source is None else source
    return tokenizer, ChatTemplate(source, tokenizer.named_tokens)


def _template_source(folder: Path) -> str | None:
    path = folder / TEMPLATE_FILE
    if path.is_file():
        return read_utf8(path)
    content = read_json_object(folder / OLD_TEMPLATE_FILE).get("chat_template")
    if content is None:
        content = read_json_object(folder / CONFIG_FILE).get("chat_template")
    if isinstance(content, list):  # several, each {"name", "template"}
        content = next((e["template"] for e in content if e.get("name") == "default"), None)
    return content if isinstance(content, str) else None


class _NotShownError(Exception):
    """A rendering failed or lacks a part of the chat."""


def _parts(parts: list[dict[str, str]]) -> list[dict[str, str]]:
    return parts


def _plain(parts: list[dict[str, str]]) -> str:
    return "".join(IMAGE_TOKEN if part["type"] == "image" else part["text"] for part in parts)


def _plain_or_parts(parts: list[dict[str, str]]) -> str | list[dict[str, str]]:
    return parts if any(part["type"] == "image" for part in parts) else _plain(parts)


def _split(rendered: str, structure: Structure) -> tuple[str | Slot, ...]:
    """Split a rendered chat at its placeholders, after checking that every part is there once."""
    owners = [
        message for message, (_, kinds) in enumerate(structure) for kind in kinds if kind == "text"
    ]
    fields = FOUND_PLACEHOLDER.split(rendered)  # [markup, (left, number, right, markup) ...]
    found = [int(number) for number in fields[2::4]]
    for number, message in enumerate(owners):
        if found.count(number) != 1:
            raise _NotShownError(
                f"it shows the text of message {message} ({structure[message][0]}) "
                f"{found.count(number)} times"
            )
    num_images = sum(kinds.count("image") for _, kinds in structure)
    num_shown = sum(markup.count(IMAGE_TOKEN) for markup in fields[::4])
    if num_shown != num_images:
        raise _NotShownError(f"it writes {num_shown} {IMAGE_TOKEN} for {num_images} images")
    pieces: list[str | Slot] = [fields[0]]
    for number, start in zip(found, range(1, len(fields), 4), strict=True):
        left, _, right, markup = fields[start : start + 4]
        pieces += [Slot(number, owners[number], not left, not right), markup]
    return tuple(piece for piece in pieces if piece != "")
