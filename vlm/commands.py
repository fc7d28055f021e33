"""Commands that use a model: ask, caption, chat; and env, which tells what they run on."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from vlm.api import Model

CHAT_HELP = "/image PATH adds a picture to the next message, /reset starts anew, /quit leaves"

ModelFolder = Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")]
Images = Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Picture files.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="At most this many new tokens.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 takes the likeliest token each time.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="Draw from the likeliest this share.")]
TopK = Annotated[int | None, typer.Option(min=1, help="Draw from so many of the likeliest.")]
MinP = Annotated[
    float, typer.Option(min=0, max=1, help="Leave out what is this much less likely than the best.")
]
Penalty = Annotated[
    float, typer.Option("--repetition-penalty", min=0.01, help="Above 1: say less of it again.")
]
Seed = Annotated[int | None, typer.Option(help="Same seed, same answer, when temperature > 0.")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")]
Safety = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A content policy as YAML; docs/serving.md."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]

app = typer.Typer(add_completion=False)


@app.command()
def ask(
    model: ModelFolder,
    images: Images,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The last argument.")],
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = None,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    safety: Safety = None,
    device: Device = "auto",
) -> None:
    """Ask a question about one or more pictures; the answer appears as it is written."""
    settings = _settings(
        max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop
    )
    content = [*_image_parts(map(_read_image, images)), {"type": "text", "text": question}]
    _print_stream(_load(model, device, safety), [{"role": "user", "content": content}], settings)


@app.command()
def caption(
    model: ModelFolder,
    pictures: Annotated[
        list[Path], typer.Argument(metavar="PATH", help="Picture files, or folders of them.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A .jsonl or .csv to write to; goes on with what is there."
        ),
    ] = None,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = None,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    safety: Safety = None,
    device: Device = "auto",
) -> None:
    """Describe pictures: one line `path: caption` each, or a line of --out.

    Files that cannot be read, or that the content policy refuses, are named on stderr and the
    others described; the exit code is then 2. With --out, a run that was stopped goes on where it
    was; a picture's name is its path below the folder if that is all that is given.
    """
    from vlm.caption_file import CaptionFile
    from vlm.captioning import expanded, named_files, print_captions, write_captions

    settings = _settings(
        max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop
    )
    if out is None:
        paths = expanded(pictures)
        num_left_out = print_captions(_load(model, device, safety), paths, **settings)
    else:
        files = named_files(pictures)
        with CaptionFile(out) as written:
            loaded = _load(model, device, safety)
            num_left_out = write_captions(loaded, files, written, **settings)
    if num_left_out:
        raise typer.Exit(2)


@app.command(epilog=CHAT_HELP)
def chat(
    model: ModelFolder,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = None,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    safety: Safety = None,
    device: Device = "auto",
) -> None:
    """Talk with a model about pictures: a line in, an answer out, until the input ends."""
    settings = _settings(
        max_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, stop
    )
    loaded = _load(model, device, safety)
    messages: list[dict[str, Any]] = []
    pictures: list[Image.Image] = []  # for the next message
    for line in _lines():
        word, _, rest = line.partition(" ")
        try:
            if word == "/quit":
                return
            elif word == "/reset":
                messages, pictures = [], []
            elif word == "/image":
                pictures.append(_read_image(Path(rest.strip(" '\"")).expanduser()))
            elif word.startswith("/"):
                raise UserError(f"unknown {word}: {CHAT_HELP}")
            else:
                content = [*_image_parts(pictures), {"type": "text", "text": line}]
                asked = [*messages, {"role": "user", "content": content}]
                answer = _print_stream(loaded, asked, settings)
                messages, pictures = [*asked, {"role": "assistant", "content": answer}], []
        except UserError as error:  # the conversation stays as it was before this line
            print("error:", error, file=sys.stderr)


@app.command()
def env() -> None:
    """Print the versions and devices in use, for a report of a problem."""
    import torch

    from vlm.provenance import commit, library_versions

    facts = {
        "commit": commit() or "not a checkout",
        **library_versions(),
        "CPU cores": os.cpu_count(),
        "CUDA": torch.version.cuda if torch.cuda.is_available() else "no device",
    }
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        facts[f"GPU {index}"] = f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
    for name, value in facts.items():
        print(f"{name:<16}{value}")


def _settings(
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int | None,
    min_p: float,
    repetition_penalty: float,
    seed: int | None,
    stop: list[str] | None,
) -> dict[str, Any]:
    return {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "stop": tuple(stop or ()),
    }


def _load(folder: Path, device: str, safety: Path | None) -> "Model":
    from vlm.api import load

    return load(folder, device=device, safety=safety)


def _read_image(path: Path) -> "Image.Image":
    from vlm.images import read_image

    return read_image(path)


def _image_parts(pictures: "Iterator[Image.Image] | list[Image.Image]") -> list[dict[str, Any]]:
    return [{"type": "image", "image": picture} for picture in pictures]


def _print_stream(model: "Model", messages: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Print an answer piece by piece and return it whole."""
    pieces = []
    for piece in model.stream(messages, **settings):
        print(piece, end="", flush=True)
        pieces.append(piece)
    print(flush=True)
    return "".join(pieces).strip()


def _lines() -> Iterator[str]:
    """Yield what is typed, or what a pipe holds, without empty lines."""
    interactive = sys.stdin.isatty()
    if interactive:
        print(CHAT_HELP)
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        if line:
            yield line
