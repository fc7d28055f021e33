"""`vlm demo`."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from vlm.errors import UserError

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Any setting: max_tokens=64 max_images=4."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings as YAML; docs/serving.md.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Default: 127.0.0.1, this machine only.")] = None,
    port: Annotated[int | None, typer.Option(help="Default: 7860; 0 is any free one.")] = None,
    folder: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Pictures on this machine that may be captioned."),
    ] = None,
    safety: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A content policy as YAML; docs/serving.md."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
) -> None:
    """Caption pictures and ask about them in the browser, until Ctrl-C or SIGTERM."""
    from vlm.config import load_config
    from vlm.demo.config import DemoConfig

    options = {"host": host, "port": port, "folder": str(folder) if folder else None}
    given = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    loaded = load_config(DemoConfig, config, [*given, *(settings or ())])
    if loaded.folder is not None and not loaded.folder.is_dir():
        raise UserError(f"--folder {loaded.folder} is no folder")
    if find_spec("gradio") is None:
        raise UserError("vlm demo needs gradio: install the extra, pip install 'vlm[demo]'")
    from vlm.api import load
    from vlm.cores import leave_a_core
    from vlm.demo.run import serve

    opened = load(model, device, dtype, safety)
    leave_a_core(opened.device)
    serve(opened, loaded)
