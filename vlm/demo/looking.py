"""The tab "Where it looks": an answer's attention over its picture, word by word."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import torch
from PIL import Image
from torch import Tensor

from encoders.tiling import TiledImage
from vlm.api import CAPTION_PROMPT, Model
from vlm.attention_maps import ImageAttention, Placement, answer_attention, image_attention
from vlm.chat.words import Word, answer_words
from vlm.demo.config import DemoConfig
from vlm.demo.overlay import DRAWN_PX, draw_attention
from vlm.demo.uploads import FileData, picture_input, read_upload, tell
from vlm.errors import UserError

ALL_WORDS, ALL_LAYERS = -1, -1


@dataclass(frozen=True)
class Look:
    """An answer, and how its tokens attended to the picture.

    picture: no larger than it is drawn.
    weights: see `vlm.attention_maps.answer_attention`.
    """

    picture: Image.Image
    image: TiledImage
    placement: Placement
    words: Sequence[Word]
    weights: dict[int, Tensor]


def look(model: Model, picture: Image.Image, question: str, max_tokens: int) -> Look:
    """Answer a question about a picture and find where the model looked.

    Raises:
        UserError: there is no question, the model answers nothing, or its content policy refuses
            the question or withholds the answer.
    """
    if not question.strip():
        raise UserError("there is no question: type one")
    image = model.processor.tile(picture)
    parts = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": parts}]
    prompt = model.processor.encode(messages, [image], add_generation_prompt=True)
    shown = [{"type": "image", "image": picture}, parts[1]]
    reply = model.chat([{"role": "user", "content": shown}], max_tokens=max_tokens, logprobs=True)
    if reply.finish_reason == "content_filter":
        raise UserError(reply.text)
    tokenizer = model.processor.tokenizer
    ids = [token.token_id for token in reply.logprobs if token.token_id not in tokenizer.end_ids]
    words = answer_words(tokenizer, ids)
    if not words:
        raise UserError("the model answered nothing, so there is nothing to see")
    small = picture.copy()
    small.thumbnail((DRAWN_PX, DRAWN_PX))
    placement = Placement.of(picture.height, picture.width, model.processor.vision)
    return Look(small, image, placement, words, answer_attention(model.network, prompt, ids))


def draw_look(model: Model, seen: Look, word: int, layer: int) -> tuple[Image.Image, str]:
    """Draw the attention of one word, or of all, in one layer, or in the mean of all.

    Returns:
        the picture, and a sentence with its figures.
    """
    layers = list(seen.weights) if layer == ALL_LAYERS else [layer]
    vision = model.processor.vision
    attention = image_attention(seen.weights, layers, [seen.image], 0, vision)
    chosen = range(len(seen.words)) if word == ALL_WORDS else [word]
    places = sorted({place for number in chosen for place in seen.words[number].places})
    patches = attention.patches[places].mean(dim=0)
    shares = attention.tiles[places].mean(dim=0).tolist()
    drawn = draw_attention(seen.picture, seen.placement, patches, shares)
    return drawn, _figures(seen, attention, places, patches)


def _figures(seen: Look, attention: ImageAttention, places: list[int], patches: Tensor) -> str:
    in_rows = torch.arange(patches.shape[0]) * seen.placement.patch_size_px
    in_columns = torch.arange(patches.shape[1]) * seen.placement.patch_size_px
    height, width = seen.placement.placed_px
    on_picture = float(patches[in_rows < height][:, in_columns < width].sum())
    prefix = float(attention.prefix[places].mean(dim=0).sum())
    padding = float(patches.sum()) - on_picture
    shares = [f"{on_picture:.0%} of the attention is on the picture's patches"]
    if prefix > 0.005:
        shares.append(f"{prefix:.0%} on tokens that stand for a whole tile")
    if padding > 0.005:
        shares.append(f"{padding:.0%} on padding")
    return f"{', '.join(shares)}. The brightest patch has {float(patches.max()):.0%}."


def looking_tab(model: Model, config: DemoConfig, pictures: Sequence[Path]) -> None:
    """Fill the tab."""

    def ask(file: FileData | None, question: str) -> tuple[object, ...]:
        try:
            if file is None:
                raise UserError("there is no picture: choose one")
            seen = look(model, read_upload(file, config), question, config.max_tokens)
        except UserError as error:
            tell(error)
            return (gr.skip(),) * 5
        words = [("all words", ALL_WORDS), *((w.text, i) for i, w in enumerate(seen.words))]
        layers = [("all, averaged", ALL_LAYERS), *((str(i), i) for i in seen.weights)]
        drawn, figures = draw_look(model, seen, ALL_WORDS, ALL_LAYERS)
        return (
            seen,
            gr.Radio(choices=words, value=ALL_WORDS, visible=True),
            gr.Dropdown(choices=layers, value=ALL_LAYERS, visible=len(layers) > 2),
            drawn,
            figures,
        )

    def redraw(seen: Look | None, word: int, layer: int) -> tuple[Image.Image | None, str]:
        return (None, "") if seen is None else draw_look(model, seen, word, layer)

    seen = gr.State(None)
    with gr.Row():
        with gr.Column():
            picture = picture_input(320, "look-picture")
            question = gr.Textbox(CAPTION_PROMPT, label="Question", elem_id="look-question")
            button = gr.Button("Answer and show", variant="primary", elem_id="look-button")
            gr.Examples(
                [[str(path)] for path in pictures],
                [picture],
                label="Examples",
                api_visibility="private",
            )
        with gr.Column():
            overlay, words, figures, layer = _outputs()
    gr.on(
        [button.click, question.submit],
        ask,
        [picture, question],
        [seen, words, layer, overlay, figures],
        preprocess=False,
        api_visibility="private",
    )
    for control in (words, layer):
        control.input(
            redraw,
            [seen, words, layer],
            [overlay, figures],
            show_progress="hidden",
            api_visibility="private",
        )


def _outputs() -> tuple[gr.Image, gr.Radio, gr.Markdown, gr.Dropdown]:
    overlay = gr.Image(
        label="Where it looked",
        show_label=False,
        interactive=False,
        format="png",
        buttons=["download", "fullscreen"],
        elem_id="look-overlay",
    )
    words = gr.Radio([], label="The answer: choose a word", visible=False, elem_id="look-words")
    figures = gr.Markdown(elem_id="look-figures")
    layer = gr.Dropdown([], label="Cross-attention layer", visible=False, elem_id="look-layer")
    gr.Markdown(
        "Bright: what the word's tokens attended to, the mean over heads. White frames are "
        "the tiles that the picture was cut into, with the share of each."
    )
    return overlay, words, figures, layer
