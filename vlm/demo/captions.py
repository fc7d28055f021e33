"""The tab "Caption": a picture in, its description out."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import gradio as gr

from vlm.api import CAPTION_PROMPT, Model
from vlm.demo.config import DemoConfig
from vlm.demo.uploads import FileData, read_upload, shown_errors


def captions_tab(model: Model, config: DemoConfig, pictures: Sequence[Path]) -> None:
    """Fill the tab."""

    def describe(file: FileData | None) -> Iterator[str]:
        yield ""
        if file is None:
            return
        with shown_errors():
            parts = [
                {"type": "image", "image": read_upload(file, config)},
                {"type": "text", "text": CAPTION_PROMPT},
            ]
            text = ""
            messages = [{"role": "user", "content": parts}]
            for piece in model.stream(messages, max_tokens=config.max_tokens):
                text += piece
                yield text

    with gr.Row():
        with gr.Column():
            picture = gr.Image(
                label="Picture",
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard", "webcam"],
                height=360,
                buttons=[],
                elem_id="caption-picture",
            )
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
