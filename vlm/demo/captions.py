"""The tab "Caption": a picture in, its description out."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import gradio as gr

from vlm.api import CAPTION_PROMPT, Model
from vlm.demo.config import DemoConfig
from vlm.demo.uploads import FileData, picture_input, read_upload, tell
from vlm.errors import UserError


def captions_tab(model: Model, config: DemoConfig, pictures: Sequence[Path]) -> None:
    """Fill the tab."""

    def describe(file: FileData | None) -> Iterator[str]:
        yield ""
        if file is None:
            return
        text = ""
        try:
            parts = [
                {"type": "image", "image": read_upload(file, config)},
                {"type": "text", "text": CAPTION_PROMPT},
            ]
            messages = [{"role": "user", "content": parts}]
            for piece in model.stream(messages, max_tokens=config.max_tokens):
                text += piece
                yield text
        except UserError as error:
            tell(error)

    with gr.Row():
        with gr.Column():
            picture = picture_input(360, "caption-picture")
        with gr.Column():
            text = gr.Textbox(
                label="Caption",
                lines=4,
                buttons=["copy"],
                interactive=False,
                placeholder="Choose, paste or take a picture: its caption appears here.",
                elem_id="caption-text",
            )
            gr.Examples(
                [[str(path)] for path in pictures],
                [picture],
                label="Examples",
                api_visibility="private",
            )
    picture.change(
        describe,
        picture,
        text,
        preprocess=False,
        trigger_mode="always_last",
        show_progress="minimal",
        api_visibility="private",
    )
