"""`vlm serve`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm.errors import UserError

if TYPE_CHECKING:
    from vlm.server.config import ServerConfig

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Any setting: slots=16 queue=128."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Settings as YAML; docs/serving.md.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Default: 127.0.0.1, this machine only.")] = None,
    port: Annotated[int | None, typer.Option(help="Default: 8000; 0 is any free one.")] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A key a line; requests must bring one of them."),
    ] = None,
    allow_image_hosts: Annotated[
        str | None,
        typer.Option(metavar="HOST,...", help="Fetch image URLs of these hosts; *.example.com."),
    ] = None,
    allow_image_folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Read file:// URLs below this folder.")
    ] = None,
    safety: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A content policy as YAML; docs/serving.md."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    quantize: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[PART=]KIND",
            help="Hold the decoder's weights in int8 or int4; PART: decoder, output, projector, "
            "encoder. May be repeated.",
        ),
    ] = None,
) -> None:
    """Serve a model over HTTP, in the form of OpenAI's API, until Ctrl-C or SIGTERM."""
    from vlm.config import load_config
    from vlm.server.config import ServerConfig

    options = {
        "host": host,
        "port": port,
        "api_keys": None if api_keys is None else read_keys(api_keys),
        "allow_image_hosts": allow_image_hosts.split(",") if allow_image_hosts else None,
        "safety": str(safety) if safety else None,
        "allow_image_folder": str(allow_image_folder) if allow_image_folder else None,
    }
    given = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    loaded = load_config(ServerConfig, config, [*given, *(settings or ())])
    _serve(model, loaded, device, dtype, quantize)


def read_keys(path: Path) -> list[str]:
    """The lines of a file of API keys.

    Raises:
        UserError: there is no such file, or no key in it.
    """
    try:
        keys = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api-keys {path} cannot be read: {error}") from error
    if not keys:
        raise UserError(f"--api-keys {path} is empty, needed: a key a line")
    return keys


def _serve(
    folder: Path, config: "ServerConfig", device: str, dtype: str, quantize: list[str] | None
) -> None:
    from vlm.api import load
    from vlm.cores import leave_a_core
    from vlm.server.load import service_of
    from vlm.server.run import serve as run

    model = load(folder, device, dtype, quantize=quantize)
    leave_a_core(model.device)
    if model.saving is not None:
        before, after = model.saving.before / 2**20, model.saving.after / 2**20
        print(f"rounded weights take {after:.1f} MiB in place of {before:.1f}", flush=True)
    run(service_of(model, config))
