"""The tab "Batch": captions of a folder, as a table and a CSV file."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from vlm.api import Model
from vlm.caption_file import CSV_HEAD, csv_text
from vlm.captioning import PICTURE_SUFFIXES, caption_files, named_files
from vlm.demo.config import DemoConfig
from vlm.demo.uploads import INTERNALS, FileData, tell, upload_name
from vlm.errors import UserError

CSV_NAME = "captions.csv"


def batch_tab(model: Model, config: DemoConfig, folder: Path) -> None:
    """Fill the tab; `folder` is for the files to download."""

    def describe_uploads(files: Sequence[FileData] | None) -> Iterator[tuple[object, ...]]:
        try:
            named = [(upload_name(file), Path(file["path"])) for file in files or ()]
            yield from _describe(model, config, named, folder)
        except UserError as error:
            tell(error)

    def describe_folder() -> Iterator[tuple[object, ...]]:
        try:
            assert config.folder is not None
            named = list(named_files([config.folder]).items())
            yield from _describe(model, config, named, folder)
        except UserError as error:
            tell(error)

    uploads = gr.File(
        label="Pictures", file_count="multiple", file_types=["image"], height=180, elem_id="batch"
    )
    with gr.Row():
        directory = gr.UploadButton("Choose a folder", file_count="directory")
        start = gr.Button("Describe them", variant="primary", elem_id="batch-start")
        if config.folder is not None:
            own = gr.Button(f"Describe {config.folder.resolve().name} on this machine")
    outputs = _outputs()
    directory.upload(_pictures_of, directory, uploads, preprocess=False, api_visibility="private")
    start.click(describe_uploads, uploads, outputs, preprocess=False, api_visibility="private")
    if config.folder is not None:
        own.click(describe_folder, None, outputs, api_visibility="private")


def _outputs() -> list[Any]:
    status = gr.Textbox(label="Done", interactive=False, max_lines=8, elem_id="batch-status")
    download = gr.DownloadButton("Download CSV", visible=False, elem_id="batch-download")
    table = gr.Dataframe(
        headers=["picture", "caption"],
        datatype="str",
        interactive=False,
        wrap=True,
        max_height=480,
        column_widths=["35%", "65%"],
        buttons=[],
        elem_id="batch-table",
    )
    return [table, status, download]


def _describe(
    model: Model, config: DemoConfig, named: Sequence[tuple[str, Path]], folder: Path
) -> Iterator[tuple[object, ...]]:
    """Yield what the outputs show while pictures are described.

    Raises:
        UserError: there are none, or too many.
    """
    if not named:
        raise UserError("there are no pictures: choose some")
    if len(named) > config.max_files:
        raise UserError(f"{len(named)} pictures, allowed at once: {config.max_files}")
    rows: list[tuple[str, str]] = []
    problems: list[str] = []
    num_done = 0
    yield rows, f"0 of {len(named)}", gr.DownloadButton(visible=False)
    paths = [path for _, path in named]
    for made in caption_files(model, paths, config.max_pixels, max_tokens=config.max_tokens):
        for (name, path), result in zip(named[num_done:], made, strict=False):
            if result.caption is not None:
                rows.append((name, result.caption))
            else:
                reason = (result.problem or "").removeprefix(f"{path}: ")
                problems.append(f"{name}: {INTERNALS.sub('...', reason)}")
        num_done += len(made)
        yield rows, f"{num_done} of {len(named)}", gr.skip()
    yield rows, _summary(len(rows), problems), _download(rows, folder)


def _pictures_of(files: Sequence[FileData]) -> list[str]:
    """The pictures among a folder's files."""
    return [f["path"] for f in files if Path(f["path"]).suffix.lower() in PICTURE_SUFFIXES]


def _summary(num_captions: int, problems: Sequence[str]) -> str:
    lines = [f"{num_captions} captions"]
    if problems:
        lines = [f"{num_captions} captions; {len(problems)} left out:", *problems]
    return "\n".join(lines)


def _download(rows: Sequence[tuple[str, str]], folder: Path) -> gr.DownloadButton:
    path = Path(tempfile.mkdtemp(dir=folder)) / CSV_NAME
    path.write_bytes(CSV_HEAD + csv_text(rows).encode("utf-8", "replace"))
    return gr.DownloadButton(value=str(path), visible=True)
