"""`vlm shards`: pack data into shards, check them, show them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm.errors import UserError

if TYPE_CHECKING:
    from data.pack import Manifest
    from data.sources import Source

EXAMPLE_REJECTS = 3

app = typer.Typer(no_args_is_help=True)
shards = typer.Typer(no_args_is_help=True, help="Pack, check and show training data.")
app.add_typer(shards, name="shards")

Folder = Annotated[Path, typer.Argument(metavar="OUT", help="A folder that `pack` wrote.")]


@shards.command("pack")
def pack_source(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", help="A file of captions, questions or chats, or its folder."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of shards to make.")],
    format_name: Annotated[
        str | None,
        typer.Option("--format", help="captions, chat, coco, vqa2, llava or easy-vqa."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder or .tar of the pictures, if not beside SOURCE.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Only rows whose `split` field is this.")
    ] = None,
    group_by_image: Annotated[
        bool, typer.Option("--group-by-image", help="One sample for all questions of a picture.")
    ] = False,
    hold_out_last: Annotated[
        int | None, typer.Option(help="The last N pictures go to OUT/validation, others OUT/train.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N samples.")] = None,
    samples_per_shard: Annotated[int, typer.Option(min=1)] = 1000,
) -> None:
    """Pack pictures with captions, questions or chats into shards.

    SOURCE is a file, or a folder with one: a captions JSONL or CSV, chat JSONL, COCO captions,
    VQA v2 questions, LLaVA instruct JSON, or easy-VQA questions. What cannot be used is left out,
    counted, and listed in OUT/rejects.jsonl.
    """
    from data.pack import pack, require_new
    from data.sources import open_source

    require_new(out)
    found = open_source(source, format_name, images, split, group_by_image)
    if limit is not None:
        found = found.first(limit)
    parts: dict[Path, Source] = {out: found}
    if hold_out_last is not None:
        train, validation = found.hold_out_last(hold_out_last)
        parts = {out / "train": train, out / "validation": validation}
    typer.echo(f"{source}: {found.format}, {len(found):,} samples")
    for folder, part in parts.items():
        manifest = pack(part.read(), folder, samples_per_shard, total=len(part))
        _print_summary(folder, manifest)


@shards.command("check")
def check_shards(out: Folder) -> None:
    """Compare shards with their manifest and decode every picture; exit code 1 on faults."""
    from data.check import check_folder, shard_folders

    num_faults = 0
    for folder in shard_folders(out):
        report = check_folder(folder, progress=True)
        for fault in report.faults:
            typer.echo(fault)
        num_faults += len(report.faults)
        verdict = f"faults: {len(report.faults)}" if report.faults else "good"
        typer.echo(f"{folder}: {_contents(report.manifest)}: {verdict}")
    if num_faults:
        raise typer.Exit(1)


@shards.command("show")
def show_shards(
    out: Folder,
    page: Annotated[
        Path | None, typer.Option("--out", help="The HTML file; OUT/contact_sheet.html if unset.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Samples to show, spread over the data.")] = 60,
) -> None:
    """Write an HTML page of samples: pictures, conversations, labels."""
    from data.check import shard_folders
    from data.show import contact_sheet

    target = page or out / "contact_sheet.html"
    content = contact_sheet(shard_folders(out), limit)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, "utf-8")
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from error
    typer.echo(f"wrote {target} ({len(content) / 1e6:.1f} MB)")


def _print_summary(folder: Path, manifest: "Manifest") -> None:
    from data.pack import REJECTS_NAME, read_rejects, reject_summary

    typer.echo(f"{folder}: {_contents(manifest)}")
    if manifest.num_rejects:
        typer.echo(f"  {manifest.num_rejects:,} rejects, listed in {folder / REJECTS_NAME}:")
        for line in reject_summary(read_rejects(folder), EXAMPLE_REJECTS):
            typer.echo(f"    {line}")


def _contents(manifest: "Manifest") -> str:
    num_bytes = sum(entry.num_bytes for entry in manifest.shards)
    return (
        f"samples {manifest.num_samples:,}, pictures {manifest.num_images:,}, questions "
        f"{manifest.num_turns:,}, shards {len(manifest.shards)} ({num_bytes / 1e6:.1f} MB)"
    )
