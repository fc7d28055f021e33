"""The tab "Chat": questions about pictures, answered while one watches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from vlm.api import Model
from vlm.demo.config import DemoConfig
from vlm.demo.examples import EXAMPLES
from vlm.demo.uploads import FileData, read_upload, tell
from vlm.errors import UserError


@dataclass(frozen=True)
class Turn:
    """A question with its pictures, and the answer as far as it is written."""

    pictures: tuple[FileData, ...]
    question: str
    answer: str = ""


Talk = tuple[Turn, ...]


def asked(message: dict[str, Any], talk: Talk, config: DemoConfig) -> Turn:
    """The turn that a message begins.

    Raises:
        UserError: it has no question, or the conversation would have too many pictures.
    """
    turn = Turn(tuple(message.get("files") or ()), (message.get("text") or "").strip())
    if not turn.question:
        raise UserError("there is no question: type one")
    num_pictures = sum(len(known.pictures) for known in (*talk, turn))
    if num_pictures > config.max_images:
        raise UserError(
            f"the conversation would have {num_pictures} pictures, allowed: {config.max_images}; "
            "begin a new one"
        )
    return turn


def to_messages(talk: Talk, config: DemoConfig) -> list[dict[str, Any]]:
    """A conversation, its last question open, as `Model.stream` takes it.

    Raises:
        UserError: a picture cannot be read.
    """
    messages: list[dict[str, Any]] = []
    for turn in talk:
        parts: list[dict[str, Any]] = [
            {"type": "image", "image": read_upload(file, config)} for file in turn.pictures
        ]
        parts.append({"type": "text", "text": turn.question})
        messages.append({"role": "user", "content": parts})
        messages.append({"role": "assistant", "content": turn.answer})
    return messages[:-1]


def shown(talk: Talk) -> list[dict[str, Any]]:
    """A conversation as the page shows it."""
    messages: list[dict[str, Any]] = []
    for turn in talk:
        for file in turn.pictures:
            messages.append({"role": "user", "content": {"path": file["path"]}})
        messages.append({"role": "user", "content": turn.question})
        if turn.answer:
            messages.append({"role": "assistant", "content": turn.answer})
    return messages


def chat_tab(model: Model, config: DemoConfig, pictures: Sequence[Path]) -> None:
    """Fill the tab."""

    def answer(message: dict[str, Any], talk: Talk) -> Iterator[tuple[object, ...]]:
        text, box = "", gr.MultimodalTextbox(value=None, interactive=False)
        try:
            turn = asked(message, talk, config)
            yield shown((*talk, turn)), talk, box
            messages = to_messages((*talk, turn), config)
            for piece in model.stream(messages, max_tokens=config.max_tokens):
                text += piece
                written = (*talk, Turn(turn.pictures, turn.question, text))
                yield shown(written), written, gr.skip()
        except UserError as error:  # everything stays as it was before the message
            tell(error)
            yield shown(talk), talk, gr.MultimodalTextbox(value=message, interactive=True)
            return
        if not text:
            gr.Info("The model answered nothing.")
            yield shown(talk), talk, gr.skip()
        yield gr.skip(), gr.skip(), _freed()

    talk = gr.State(())
    chatbot, box, stop, anew = _components(pictures)
    writing = box.submit(
        answer, [box, talk], [chatbot, talk, box], preprocess=False, api_visibility="private"
    )
    stop.click(_freed, None, box, cancels=[writing], api_visibility="private")
    anew.click(
        lambda: ([], (), _freed()),
        None,
        [chatbot, talk, box],
        cancels=[writing],
        api_visibility="private",
    )


def _components(
    pictures: Sequence[Path],
) -> tuple[gr.Chatbot, gr.MultimodalTextbox, gr.Button, gr.Button]:
    chatbot = gr.Chatbot(
        label="Conversation",
        height=420,
        render_markdown=False,
        allow_tags=False,
        latex_delimiters=[],
        buttons=["copy"],
        placeholder="Add pictures, ask about them, go on asking.",
        elem_id="chat",
    )
    box = gr.MultimodalTextbox(
        show_label=False,
        sources=["upload"],
        file_types=["image"],
        file_count="multiple",
        placeholder="Ask about a picture",
        max_plain_text_length=100_000,
        elem_id="chat-box",
    )
    with gr.Row():
        stop = gr.Button("Stop", size="sm", min_width=80, elem_id="chat-stop")
        anew = gr.Button("New conversation", size="sm", min_width=80, elem_id="chat-new")
    gr.Examples(
        [
            [{"text": example.question, "files": [str(path)]}]
            for path, example in zip(pictures, EXAMPLES, strict=True)
        ],
        [box],
        label="Examples",
        api_visibility="private",
    )
    return chatbot, box, stop, anew


def _freed() -> gr.MultimodalTextbox:
    """The box, ready for the next message."""
    return gr.MultimodalTextbox(interactive=True)
