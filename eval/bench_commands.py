"""`vlm bench`: our speed beside that of others.

A comparison is a file in `eval/speed/` and a command here; the front door finds the group in
`training/commands.py`, which adds the comparison of training steps.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

bench = typer.Typer()

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights.")]
Repeats = Annotated[int, typer.Option(min=1, help="Measured calls of each side, in turn.")]
TileSize = Annotated[int, typer.Option(min=1, metavar="PX", help="Side of a tile.")]
MaxTiles = Annotated[int, typer.Option(min=1, help="Most tiles of a picture.")]
ReportFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE.json", help="Write machine and rows here.")
]


@bench.command("encode")
def bench_encode(
    against: Annotated[
        Literal["transformers"], typer.Option(help="The peer: its MllamaVisionModel, with SDPA.")
    ] = "transformers",
    tile_mix: Annotated[
        str, typer.Option(metavar="N,N,...", help="Tiles of each image of the batch, 1 to 4.")
    ] = "1,1,2,4",
    padding_tiles: Annotated[
        Literal["drop", "attend"] | None,
        typer.Option(
            help="drop computes the pictures' tiles only, attend what the peer computes. "
            "Default: both, one after the other."
        ),
    ] = None,
    size: Annotated[
        Literal["tiny", "small", "11b"],
        typer.Option(
            help="small is the 11B's encoder in miniature: 8 local and 2 global layers 384 wide, "
            "tiles of 224 px in patches of 14; about a minute on two CPU cores. 11b is the real "
            "shape, for a GPU; tiny is for tests."
        ),
    ] = "small",
    device: Device = "auto",
    dtype: Dtype = "float32",
    repeats: Repeats = 7,
    report: ReportFile = None,
) -> None:
    """Measure the vision encoder on images of several tiles.

    Both sides hold the same weights. transformers gets its pixels normalised and padded to four
    tiles; we get bytes. The figures are the median milliseconds of a batch; a ratio above 1 means
    that we are ahead.
    """
    from eval.speed.encode import compare_with_transformers, parse_tile_mix
    from eval.speed.harness import SpeedReport, check_report_path, machine_facts, publish
    from vlm.api import find_device

    num_tiles, target = parse_tile_mix(tile_mix), find_device(device)
    if report is not None:
        check_report_path(report)
    rows = []
    for mode in (padding_tiles,) if padding_tiles else ("drop", "attend"):
        row, agreement = compare_with_transformers(size, num_tiles, mode, target, dtype, repeats)
        print(agreement)
        rows.append(row)
    publish(SpeedReport(machine=machine_facts(target), rows=rows), against, report)


@bench.command("decode")
def bench_decode(
    against: Annotated[
        Literal["transformers"], typer.Option(help="The peer: its Mllama, through `generate`.")
    ] = "transformers",
    size: Annotated[
        Literal["tiny", "30m", "11b"],
        typer.Option(
            help="30m is half as deep as the 11B, 320 wide, with tiles of 257 tokens. 11b is the "
            "real shape, for a GPU; tiny is for tests."
        ),
    ] = "30m",
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Prompts answered together; may be repeated. Default: 1 and 8."),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=2, help="Of text in a prompt.")] = 64,
    new_tokens: Annotated[int, typer.Option(min=2, help="Of each answer.")] = 64,
    device: Device = "auto",
    dtype: Dtype = "float32",
    repeats: Repeats = 5,
    report: ReportFile = None,
) -> None:
    """Measure answering: tokens a second, and the time to the first token.

    Both sides hold the same weights and get prompts of a picture of one tile and random words. The
    first token comes after the picture and the prompt were run; of a picture seen before, we keep
    what the decoder reads. A ratio above 1 means that we are ahead.
    """
    from eval.speed.decode import compare_with_transformers
    from eval.speed.harness import SpeedReport, check_report_path, machine_facts, publish
    from vlm.api import find_device

    target = find_device(device)
    if report is not None:
        check_report_path(report)
    rows, agreements = compare_with_transformers(
        size, batch_size or (1, 8), prompt_tokens, new_tokens, target, dtype, repeats
    )
    print("\n".join(agreements))
    publish(SpeedReport(machine=machine_facts(target), rows=rows), against, report)


@bench.command("score")
def bench_score(
    size: Annotated[
        Literal["tiny", "30m", "11b"], typer.Option(help="As of `vlm bench decode`.")
    ] = "30m",
    choices: Annotated[int, typer.Option(min=2, help="Answers that may follow a prompt.")] = 4,
    choice_tokens: Annotated[int, typer.Option(min=1, help="Of each of them.")] = 4,
    prompt_tokens: Annotated[int, typer.Option(min=2, help="Of text in a prompt.")] = 64,
    batch_size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Prompts scored together; may be repeated. Default: 1 and 8."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    repeats: Repeats = 5,
    report: ReportFile = None,
) -> None:
    """Measure how likely each of several answers is, beside scoring every answer alone.

    A prompt is a picture of one tile and random words. Alone, the prompt is run anew for every
    answer, and the picture too unless it was seen before. A ratio above 1 means that sharing is
    ahead.
    """
    from eval.speed.harness import Row, SpeedReport, check_report_path, machine_facts, publish
    from eval.speed.score import Load, compare_with_alone
    from vlm.api import find_device

    target = find_device(device)
    if report is not None:
        check_report_path(report)
    rows: list[Row] = []
    for number in batch_size or (1, 8):
        load = Load(number, prompt_tokens, choices, choice_tokens)
        measured, agreement = compare_with_alone(size, load, target, dtype, repeats)
        print(agreement)
        rows += measured
    publish(SpeedReport(machine=machine_facts(target), rows=rows), "alone", report)


@bench.command("load")
def bench_load(
    data: Annotated[
        list[Path] | None,
        typer.Option(help="A folder of shards of one picture a sample; may be repeated."),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=8, help="Samples of the made photos; 0.5 and 12 megapixels.")
    ] = 32,
    large_size: Annotated[
        str, typer.Option(metavar="WxH", help="Pixels of the made large photos.")
    ] = "4000x3000",
    long_samples: Annotated[
        int,
        typer.Option(min=0, help="Also make so many little samples: resuming, memory; try 100000."),
    ] = 0,
    tile_size: TileSize = 560,
    max_tiles: MaxTiles = 4,
    workers: Annotated[int, typer.Option(min=0, help="Loader processes of each side.")] = 0,
    repeats: Repeats = 3,
    report: ReportFile = None,
) -> None:
    """Measure loading: shards to batches, beside webdataset and transformers' image processor.

    One epoch of each `--data` folder, and of JPEGs that are made for it. webdataset decodes the
    pictures in full and then gets our transforms. Torch computes on one core. The figures are
    samples a second; a ratio above 1 means that we are ahead.
    """
    from tempfile import TemporaryDirectory

    from eval.speed.harness import (
        SpeedReport,
        check_report_path,
        machine_facts,
        one_thread,
        publish,
    )
    from eval.speed.load import compare_loaders
    from eval.speed.long_load import compare_long_loading
    from eval.speed.photos import SMALL_PX, pack_photos, parse_size
    from vlm.api import find_device

    large_px = parse_size(large_size)
    if report is not None:
        check_report_path(report)
    rows = []
    with one_thread(), TemporaryDirectory() as made:
        folders = list(data or ())
        for name, size_px in (("small", SMALL_PX), ("large", large_px)):
            folders.append(Path(made) / name)
            pack_photos(folders[-1], size_px, samples)
        for folder in folders:
            measured, agreement = compare_loaders(folder, tile_size, max_tiles, workers, repeats)
            print(agreement)
            rows += measured
        if long_samples:
            rows += compare_long_loading(Path(made) / "long", long_samples)
        facts = machine_facts(find_device("cpu"))
    publish(SpeedReport(machine=facts, rows=rows), "peer", report)


@bench.command("preprocess")
def bench_preprocess(
    images: Annotated[
        Path | None, typer.Option(help="A folder of pictures to measure instead of made ones.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Only the first so many of them.")] = 50,
    sizes: Annotated[
        str, typer.Option(metavar="WxH,...", help="Pixels of the made photos.")
    ] = "320x240,500x375,640x480,1280x960,2048x1365,4000x3000",
    tile_size: TileSize = 560,
    max_tiles: MaxTiles = 4,
    repeats: Repeats = 5,
    report: ReportFile = None,
) -> None:
    """Measure pictures to tiles on one core, beside transformers' Mllama image processors.

    The faster of its two is the peer. `exact` is what a model is asked with; `same bits` is that
    beside the one that gives the same bit for bit; `draft` is what a model is trained on, `files`
    that with decoding the JPEG, on both sides. The figures are pictures a second; a ratio above 1
    means that we are ahead.
    """
    from eval.speed.harness import (
        SpeedReport,
        check_report_path,
        machine_facts,
        one_thread,
        publish,
    )
    from eval.speed.photos import parse_size
    from eval.speed.preprocess import Tiling, compare_preprocessing, folder_group, made_groups
    from vlm.api import find_device

    sizes_px = [parse_size(size) for size in sizes.split(",")]
    if report is not None:
        check_report_path(report)
    groups = made_groups(sizes_px) if images is None else folder_group(images, limit)
    with one_thread():
        rows, agreements = compare_preprocessing(groups, Tiling(tile_size, max_tiles), repeats)
        facts = machine_facts(find_device("cpu"))
    for agreement in agreements:
        print(agreement)
    publish(SpeedReport(machine=facts, rows=rows), "transformers", report)


@bench.command("serve")
def bench_serve(
    model: Annotated[
        Path | None,
        typer.Option(help="A model folder for many at a time beside one. Default: a small one."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=2, help="Answers at a time.")] = 16,
    seconds: Annotated[float, typer.Option(min=0.5, help="Of the steady load, and others.")] = 30,
    stream_seconds: Annotated[float, typer.Option(min=1, help="Of the event streams.")] = 60,
    requests: Annotated[int, typer.Option(min=100, help="Good and bad ones.")] = 10_000,
    report: ReportFile = None,
) -> None:
    """Measure `vlm serve` under load, with an engine that computes nothing; a minute or more.

    100 requests a second with a photo each; a crowd of 256; 64 event streams; good and bad
    requests in turn; clients that hang up. The peer is the limit of each figure: a ratio above 1
    means that it is kept. Last, answers a second of a real model, many at a time beside one.
    """
    from tempfile import TemporaryDirectory

    from eval.speed.harness import SpeedReport, check_report_path, machine_facts, publish
    from eval.speed.serve import Load, measure_load
    from eval.speed.serve_throughput import compare_concurrency, make_model
    from vlm.api import find_device

    if report is not None:
        check_report_path(report)
    rows = measure_load(Load(seconds, stream_seconds, requests))
    with TemporaryDirectory() as made:
        if model is None:
            model = Path(made) / "made"
            make_model(model)
        rows.append(compare_concurrency(model, concurrency, 4 * concurrency))
    publish(SpeedReport(machine=machine_facts(find_device("cpu")), rows=rows), "limit", report)
