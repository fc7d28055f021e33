"""`vlm train`, `vlm quickstart`; what `vlm bench`, `convert` and `shards` do with training."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from data.commands import print_summary, shards
from eval.bench_commands import Device, Repeats, ReportFile
from eval.bench_commands import bench as comparisons
from vlm.errors import UserError
from vlm.weights.commands import convert

app = typer.Typer(help="Train models.", no_args_is_help=True, add_completion=False)
train = typer.Typer(help="Train one stage from its configuration.", no_args_is_help=True)
app.add_typer(train, name="train")
bench = typer.Typer(
    no_args_is_help=True,
    help="Measure our speed and a peer's in one run, after checking that both answer alike.",
)
bench.add_typer(comparisons)
app.add_typer(bench, name="bench")
app.add_typer(convert, name="convert")
app.add_typer(shards, name="shards")

ConfigFile = Annotated[Path, typer.Option("--config", help="The stage's YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to change, as dotted.key=value.")
]
Resume = Annotated[
    str | None,
    typer.Option(help="`auto` continues from the run folder's newest checkpoint, if any."),
]
Force = Annotated[
    bool, typer.Option("--force", help="With --resume: go on under changed settings.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be trained, on what, and stop.")
]


@train.command("text")
def train_text(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = None,
    force: Force = False,
    dry_run: DryRun = False,
) -> None:
    """Train the decoder's self-attention stack on text."""
    _train("text", config, overrides or [], resume, force, dry_run)


@train.command("encoder")
def train_encoder(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = None,
    force: Force = False,
    dry_run: DryRun = False,
) -> None:
    """Train the vision encoder and a text tower on pictures and texts that belong together."""
    _train("encoder", config, overrides or [], resume, force, dry_run)


@train.command("align")
def train_align(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = None,
    force: Force = False,
    dry_run: DryRun = False,
) -> None:
    """Train the projector and the cross-attention blocks between a frozen encoder and decoder."""
    _train("align", config, overrides or [], resume, force, dry_run)


@train.command("finetune")
def train_finetune(
    config: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = None,
    force: Force = False,
    dry_run: DryRun = False,
) -> None:
    """Train everything, or LoRA adapters, on the assistant's turns."""
    _train("finetune", config, overrides or [], resume, force, dry_run)


@app.command("quickstart")
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for shards, models and the report.")] = Path(
        "runs/quickstart"
    ),
    seed: Annotated[
        int, typer.Option(help="Decides the scenes, the first weights and the order.")
    ] = 0,
    minutes: Annotated[
        float, typer.Option(min=1, help="Scales the training; 6 is the usual run.")
    ] = 6,
) -> None:
    """Render scenes, train all four stages on them, evaluate, and write an HTML report."""
    from training.quickstart import run_quickstart

    run_quickstart(out, seed, minutes)


@shards.command("features")
def encode_shards(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A model folder: its encoder is run.")
    ],
    source: Annotated[
        str, typer.Argument(metavar="SHARDS", help="A folder of shards, or its URL.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder of shards to make.")],
    dtype: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="What features are kept in.")
    ] = "bfloat16",
    exact: Annotated[
        bool,
        typer.Option("--exact", help="Of exact pixels, for runs with data.draft=false."),
    ] = False,
    batch_tiles: Annotated[
        int, typer.Option(min=1, help="Tiles that the encoder gets at once.")
    ] = 32,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Samples of a shard.")] = 100,
    device: Device = "auto",
) -> None:
    """Run a frozen encoder once over all pictures: `vlm train align` reads OUT without running it.

    OUT holds the samples with the encoder's features in place of their pictures.
    """
    from training.features import FeatureSettings, write_features
    from vlm.api import find_device

    settings = FeatureSettings(dtype, not exact, batch_tiles, samples_per_shard)
    manifest = write_features(model, source, out, settings, find_device(device))
    print_summary(out, manifest)


@bench.command("train")
def bench_train(
    against: Annotated[
        Literal["transformers"],
        typer.Option(help="The peer: its MllamaForConditionalGeneration, with SDPA."),
    ] = "transformers",
    tile_mix: Annotated[
        str, typer.Option(metavar="N,N,...", help="Tiles of each picture of the batch, 1 to 4.")
    ] = "1,1,2,4",
    padding_tiles: Annotated[
        Literal["drop", "attend"],
        typer.Option(help="drop computes the pictures' tiles only, attend what the peer computes."),
    ] = "drop",
    size: Annotated[
        Literal["tiny", "small", "11b"],
        typer.Option(
            help="small is the 11B in miniature: the encoder of `bench encode`, a decoder 512 wide "
            "of 10 layers with 32,000 words; minutes on two CPU cores. 11b is the real shape, for "
            "a GPU; tiny is for tests."
        ),
    ] = "small",
    device: Device = "auto",
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the weights.")] = (
        "float32"
    ),
    repeats: Repeats = 5,
    report: ReportFile = None,
) -> None:
    """Measure a training step: forward, backward and AdamW, on pictures and texts mixed.

    Both sides hold the same weights and have the same rows, packed here and padded there; two that
    are text alone for us show a picture of one tile to transformers. The figures are samples a
    second and the most memory that is alive at once; a ratio above 1 means that we are ahead.
    """
    from eval.speed.encode import parse_tile_mix
    from eval.speed.harness import SpeedReport, check_report_path, machine_facts, publish
    from training.speed import compare_steps
    from vlm.api import find_device

    num_tiles, target = parse_tile_mix(tile_mix), find_device(device)
    if report is not None:
        check_report_path(report)
    rows, agreement = compare_steps(size, num_tiles, padding_tiles, target, dtype, repeats)
    print(agreement)
    publish(SpeedReport(machine=machine_facts(target), rows=rows), against, report)


@convert.command("checkpoint")
def checkpoint(
    source: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run's folder, or one of its checkpoints.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder that is new, or empty.")],
) -> None:
    """Write a whole model folder of a checkpoint: of a run's newest, or of the one named."""
    from training.conversion import convert_checkpoint

    print(f"{convert_checkpoint(source, out)} -> {out}")


def _train(
    stage: Literal["text", "encoder", "align", "finetune"],
    config_file: Path,
    overrides: list[str],
    resume: str | None,
    force: bool,
    dry_run: bool,
) -> None:
    from training.config import TrainConfig
    from vlm.config import load_config

    if resume not in (None, "auto"):
        raise UserError(f"--resume takes auto, not {resume!r}")
    if force and resume is None:
        raise UserError("--force goes on under changed settings: it needs --resume auto")
    config = load_config(TrainConfig, config_file, overrides)
    if config.stage != stage:
        raise UserError(
            f"{config_file} is for stage {config.stage}; run `vlm train {config.stage}`"
        )
    if dry_run:
        from training.dry_run import describe_run

        print(describe_run(config))
        return
    from training.distributed import is_first_rank, is_launched, leave_ranks
    from training.launch import end_with_launcher, launch, processes_wanted

    processes = processes_wanted(config)
    if processes > 1:
        options = [] if resume is None else ["--resume", resume]
        options += ["--force"] if force else []
        command = ["train", stage, "--config", str(config_file), *overrides, *options]
        raise typer.Exit(launch(processes, command))
    if is_launched():
        end_with_launcher()
    from training.run import train_stage
    from training.signals import STOPPED_EXIT_CODE, RunStopped

    try:
        train_stage(config, resume=resume == "auto", force=force)
    except RunStopped as stopped:
        if is_first_rank():
            print(stopped)
        raise typer.Exit(STOPPED_EXIT_CODE) from None
    leave_ranks()
