"""The page: its head, its tabs, its look."""

from pathlib import Path

import gradio as gr

from vlm.api import Model
from vlm.demo.batch import batch_tab
from vlm.demo.captions import captions_tab
from vlm.demo.chat import chat_tab
from vlm.demo.config import DemoConfig
from vlm.demo.examples import write_examples
from vlm.demo.looking import looking_tab

# Seconds between two looks for uploads that are too old.
SWEEP_S = 300
FONT = ("system-ui", "sans-serif")
MONOSPACE = ("ui-monospace", "monospace")
# In the head, since gradio binds the styles it is given to what lies within its frame.
HEAD = """<style>
.gradio-container { max-width: 1100px !important; width: 100%; margin: auto; }
#title h1 { margin: 0; }
#look-words label { overflow-wrap: anywhere; padding: 4px 10px; }
#look-words label span { margin: 0; }
#look-words input { position: absolute; opacity: 0; }
#look-words label:has(input:checked) { background: var(--primary-500); color: white; }
#look-words label:has(input:focus-visible) { outline: 2px solid var(--primary-700); }
#chat [aria-label="Share"] { display: none; }
footer { display: none !important; }
@media (max-width: 480px) {
    .main.fillable { padding: 12px !important; }
    .tab-container button { padding: 0 8px !important; }
}
</style>"""


def make_page(model: Model, config: DemoConfig, folder: Path) -> gr.Blocks:
    """Return the page of a model.

    Args:
        folder: for files that the page makes: examples, captions to download.
    """
    tile_size_px = model.processor.vision.tile_size_px
    pictures = write_examples(folder, tile_size_px)
    name = model.folder.resolve().name
    with gr.Blocks(
        title=f"{name} - vlm", analytics_enabled=False, delete_cache=(SWEEP_S, config.keep_s)
    ) as page:
        gr.Markdown(f"# {name}", elem_id="title")
        with gr.Tab("Caption"):
            captions_tab(model, config, pictures)
        with gr.Tab("Chat"):
            chat_tab(model, config, pictures)
        with gr.Tab("Batch"):
            batch_tab(model, config, folder)
        with gr.Tab("Where it looks"):
            looking_tab(model, config, pictures)
    page.queue(api_open=False, max_size=config.queue, default_concurrency_limit=config.running)
    return page


def make_theme() -> gr.themes.Base:
    """The look of the page, in fonts that every machine has."""
    return gr.themes.Default(primary_hue="orange", font=FONT, font_mono=MONOSPACE)
