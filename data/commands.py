"""`vlm shards`: pack data into shards, check them, show them, measure them."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vlm.errors import UserError

if TYPE_CHECKING:
    from data.pack import Manifest
    from data.stats import FolderStats

EXAMPLE_REJECTS = 3

app = typer.Typer(no_args_is_help=True)
shards = typer.Typer(
    no_args_is_help=True, help="Pack, check, show, measure and encode training data."
)
app.add_typer(shards, name="shards")

Folder = Annotated[Path, typer.Argument(metavar="OUT", help="A folder that `pack` wrote.")]


@shards.command("pack")
def pack_source(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A file of captions, questions or chats, a parquet file, or its folder.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of shards to make.")],
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="captions, chat, coco, vqa2, llava, cauldron, questions or easy-vqa.",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder or .tar of the pictures, if not beside SOURCE.")
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME: only rows of this split. train=0.9,validation=0.1: divide by the "
            "pictures' hash into OUT/train and OUT/validation. Both may be given.",
        ),
    ] = None,
    group_by_image: Annotated[
        bool, typer.Option("--group-by-image", help="One sample for all questions of a picture.")
    ] = False,
    hold_out_last: Annotated[
        int | None, typer.Option(help="The last N pictures go to OUT/validation, others OUT/train.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N samples.")] = None,
    max_side: Annotated[
        int | None,
        typer.Option(min=1, metavar="PX", help="Shrink pictures with a longer side to this."),
    ] = None,
    dedup: Annotated[
        Literal["sample", "picture"] | None,
        typer.Option(
            help="Leave out what repeats an earlier sample byte for byte; or also what shows a "
            "picture that came before under another name.",
        ),
    ] = None,
    samples_per_shard: Annotated[int, typer.Option(min=1)] = 1000,
    num_workers: Annotated[
        int, typer.Option(min=0, help="Processes that read and decode; the shards are the same.")
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a pack that was stopped or killed.")
    ] = False,
) -> None:
    """Pack pictures with captions, questions or chats into shards.

    SOURCE is a file, or a folder with one: a captions JSONL or CSV, chat JSONL, COCO captions,
    VQA v2 questions, LLaVA instruct JSON, The Cauldron's rows, questions JSONL or CSV, or easy-VQA
    questions; parquet files or a folder of Hugging Face datasets; or a folder of pictures with a
    .txt beside each. What cannot be used is left out, counted, and listed in OUT/rejects.jsonl.
    """
    from data.pack import PackSettings, Part, pack_parts
    from data.sources import open_source
    from data.splits import choose_parts, read_split
    from data.staging import require_new

    require_new(out, resume)
    chosen, shares = read_split(split or [])
    found = open_source(source, format_name, images, chosen, group_by_image)
    if limit is not None:
        found = found.first(limit)
    typer.echo(f"{source}: {found.format}, {len(found):,} samples")
    parts = {
        name: Part(part.items, part.pictures, len(part), part.fingerprint)
        for name, part in choose_parts(found, hold_out_last, shares).items()
    }
    settings = PackSettings(samples_per_shard, max_side, dedup, num_workers)
    try:
        manifests = pack_parts(parts, out, settings, resume)
    except KeyboardInterrupt as interruption:
        typer.echo(interruption, err=True)
        raise
    for folder, manifest in manifests.items():
        print_summary(folder, manifest)


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
    turn_type: Annotated[
        str | None, typer.Option("--type", help="Only samples with an answer of this type.")
    ] = None,
    contains: Annotated[
        str | None, typer.Option(help="Only samples with this text in a message.")
    ] = None,
    min_side: Annotated[
        int | None,
        typer.Option(min=1, metavar="PX", help="Only samples whose pictures are this large."),
    ] = None,
    num_images: Annotated[
        int | None, typer.Option(min=0, help="Only samples with this many pictures.")
    ] = None,
) -> None:
    """Write an HTML page of samples: pictures, conversations, labels, and what was left out."""
    from data.check import shard_folders
    from data.show import Wanted, contact_sheet

    wanted = Wanted(turn_type, contains, min_side, num_images)
    _write_page(
        page or out / "contact_sheet.html", contact_sheet(shard_folders(out), limit, wanted)
    )


@shards.command("stats")
def measure_shards(
    out: Folder,
    page: Annotated[
        Path | None, typer.Option("--out", help="The HTML file; OUT/stats.html if unset.")
    ] = None,
    config: Annotated[
        Path, typer.Option(help="The model whose tiles are counted: a YAML file of its shape.")
    ] = Path("configs/model/llama3_2_11b.yaml"),
    tile_size: Annotated[
        int | None, typer.Option(min=1, metavar="PX", help="Instead of the model's.")
    ] = None,
    max_tiles: Annotated[int | None, typer.Option(min=1, help="Instead of the model's.")] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder that counts tokens; words are counted if unset.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures to this file as well.")
    ] = None,
) -> None:
    """Measure pictures, tiles and texts: a table here, histograms in an HTML page."""
    from data.check import shard_folders
    from data.stats import Ruler, measure_folder
    from data.stats_page import stats_page
    from vlm.chat.processor import Processor
    from vlm.config import VLMConfig, load_config

    vision = load_config(VLMConfig, config).vision
    processor = None if tokenizer is None else Processor.from_folder(tokenizer, vision)
    ruler = Ruler(tile_size or vision.tile_size_px, max_tiles or vision.max_num_tiles, processor)
    found = [measure_folder(folder, ruler, progress=True) for folder in shard_folders(out)]
    for stats in found:
        _print_stats(stats)
    if json_file is not None:
        _write(json_file, json.dumps([stats.to_json() for stats in found], indent=1) + "\n")
    _write_page(page or out / "stats.html", stats_page(found))


def _print_stats(stats: "FolderStats") -> None:
    from data.stats import table_rows

    typer.echo(f"{stats.folder}: {_contents(stats.manifest)}")
    rows = table_rows(stats)
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for name, *figures in rows:
        cells = [f"{figure:>{width}}" for figure, width in zip(figures, widths[1:], strict=True)]
        typer.echo(f"  {name:<{widths[0]}}  {'  '.join(cells)}")
    if stats.bad_pictures:
        typer.echo(f"  pictures that cannot be read: {stats.bad_pictures:,}")


def _write_page(target: Path, content: str) -> None:
    _write(target, content)
    typer.echo(f"wrote {target} ({len(content) / 1e6:.1f} MB)")


def _write(target: Path, content: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content, "utf-8")
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from error


def print_summary(folder: Path, manifest: "Manifest") -> None:
    """Print what a folder of shards holds, and what was left out."""
    from data.rejects import REJECTS_NAME, read_rejects, reject_summary

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
