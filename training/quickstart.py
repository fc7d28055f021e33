"""`vlm quickstart`: scenes, four stages, evaluation and a report, on a CPU.

It goes through the code of the ordinary commands, with the files of `configs/quickstart/`.
"""

import math
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from rich.console import Console

from data.shape_samples import Content, write_scenes
from data.shapes import SceneConfig
from data.shards import read_folder
from eval.benchmark import find_benchmark
from eval.prompts import usual_answer
from eval.report import Report, terminal_table
from eval.run import evaluate
from eval.scoring import Scored
from training.config import StageName, TrainConfig
from training.metrics import METRICS_FILE, read_metrics
from training.quickstart_report import ShownQuestion, ShownScene, StageResult, write_html
from training.run import train_stage
from vlm.api import CAPTION_PROMPT, Model, load
from vlm.config import PACKAGE_ROOT, load_config
from vlm.errors import UserError
from vlm.weights.folder import write_json

SCENES = SceneConfig(
    colours=("red", "green", "blue", "yellow"),
    num_shapes_weights=(0.3, 0.4, 0.2, 0.1),
    format_weights={"square": 0.55, "wide": 0.15, "tall": 0.15, "large": 0.15},
    questions_per_type={
        "existence": 2,
        "colour": 2,
        "shape": 2,
        "count": 2,
        "place": 2,
        "relation": 3,
        "comparison": 1,
    },
)
NUM_TRAIN_SCENES = 4000
# Captions are long, and questions teach more a second: finetuning sees those of these scenes only.
NUM_DESCRIBED_SCENES = 800
NUM_VALIDATION_SCENES = 48
NUM_TEST_SCENES = 200
NUM_SHOWN_SCENES = 12
STAGES: tuple[StageName, ...] = ("text", "encoder", "align", "finetune")
# What --minutes 6 stands for: the configurations' steps, unscaled. They took 3.8 on two cores.
CONFIGURED_MINUTES = 6.0
# Seeds of the splits lie this far apart, so that runs of neighbouring seeds share no scene.
SEED_STRIDE = 10


def run_quickstart(out: Path, seed: int, minutes: float) -> Report:
    """Run the whole story below `out` and return the evaluation of the model on held-out scenes.

    Args:
        minutes: scales the steps of the stages and the number of scenes; the clock decides
            nothing.
    Raises:
        UserError: `out` holds something already.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; remove it, or choose another with --out")
    started = time.perf_counter()
    scale = minutes / CONFIGURED_MINUTES
    console = Console()
    _write_shards(out / "shards", seed, scale)
    stages = [_train(stage, out, seed, scale) for stage in STAGES]
    model = load(out / "finetune", device="cpu")
    test = out / "shards" / "test"
    evaluation = evaluate(model, find_benchmark("shards"), test, out / "evaluation.json")
    report = evaluation.report
    scenes = _show_scenes(model, test, evaluation.scored)
    seconds = time.perf_counter() - started
    write_html(out / "report.html", stages, report, scenes, seconds, seed)
    _write_summary(out / "report.json", stages, report, seconds)
    console.print(terminal_table(report))
    console.print(_what_next(out, seconds), markup=False, highlight=False)
    return report


def _write_shards(folder: Path, seed: int, scale: float) -> None:
    """Write the splits; captions and questions for training are about the same scenes.

    They are samples of their own, so that batches hold rows of like length.
    """
    num_train = math.ceil(NUM_TRAIN_SCENES * scale)
    num_described = math.ceil(NUM_DESCRIBED_SCENES * scale)
    splits: tuple[tuple[str, int, int, Content], ...] = (
        ("captions", 0, num_train, "captions"),
        ("descriptions", 0, num_described, "captions"),
        ("questions", 0, num_train, "questions"),
        ("validation", 1, NUM_VALIDATION_SCENES, "both"),
        ("test", 2, NUM_TEST_SCENES, "both"),
    )
    for split, number, count, content in splits:
        write_scenes(folder / split, count, SEED_STRIDE * seed + number, SCENES, content)


def _train(stage: StageName, out: Path, seed: int, scale: float) -> StageResult:
    config = stage_config(stage, out, seed, scale)
    result = train_stage(config)
    metrics = read_metrics(config.out / METRICS_FILE)
    losses = [record["loss"] for record in metrics if record["split"] == "train"]
    return StageResult(stage, result.steps, losses[-1], result.seconds, metrics)


def stage_config(stage: StageName, out: Path, seed: int, scale: float) -> TrainConfig:
    """The stage's configuration, with its folders below `out` and its steps scaled."""
    file = PACKAGE_ROOT / "configs" / "quickstart" / f"{stage}.yaml"
    plain = load_config(TrainConfig, file)
    shards = out / "shards"
    overrides = [
        f"out={out / stage}",
        f"seed={seed}",
        f"steps={max(1, round(plain.steps * scale))}",
    ]
    train = [source.path for source in plain.data.sources]
    for split, paths in (("train", train), ("validation", plain.data.validation)):
        folders = ", ".join(str(shards / Path(path).name) for path in paths)
        overrides.append(f"data.{split}=[{folders}]")
    if plain.optim.decay_steps is not None:
        overrides.append(f"optim.decay_steps={max(1, round(plain.optim.decay_steps * scale))}")
    for key, parent in plain.init_from:
        if parent is not None:
            overrides.append(f"init_from.{key}={out / parent.name}")
    return load_config(TrainConfig, file, overrides)


def _show_scenes(model: Model, folder: Path, scored: Scored) -> list[ShownScene]:
    """The first scenes of the test set with what the model answered and how it describes them."""
    samples = list(islice(read_folder(folder), NUM_SHOWN_SCENES))
    captions = model.answer_batch([(raw.images, CAPTION_PROMPT) for raw in samples])
    asked = list(zip(scored.items, scored.answers, scored.headline.item_scores, strict=True))
    shown = []
    for raw, written in zip(samples, captions, strict=True):
        questions = tuple(
            ShownQuestion(item.type, item.question, usual_answer(item), answer.value, right == 1)
            for item, answer, right in asked
            if item.id.rpartition("#")[0] == raw.key
        )
        true_caption = raw.sample.messages[1].text
        shown.append(ShownScene(raw.images[0], written, true_caption, questions))
    return shown


def _write_summary(
    path: Path, stages: Sequence[StageResult], report: Report, seconds: float
) -> None:
    write_json(
        path,
        {
            "accuracy": report.overall.headline().value,
            "blind_accuracy": report.overall.headline("blind").value,
            "majority_accuracy": report.overall.headline("majority").value,
            "seconds": round(seconds, 1),
            "types": {
                name: {
                    "accuracy": row.headline().value,
                    "blind_accuracy": row.headline("blind").value,
                }
                for name, row in report.types.items()
            },
            "stages": [
                {
                    "name": stage.name,
                    "steps": stage.steps,
                    "final_loss": stage.final_loss,
                    "seconds": round(stage.seconds, 1),
                }
                for stage in stages
            ],
        },
    )


def _what_next(out: Path, seconds: float) -> str:
    return f"""
Done in {seconds / 60:.1f} minutes; the report is {out / "report.html"}. Try next:
  vlm ask {out / "finetune"} PICTURE "what colour is the circle?"
  vlm shards show {out / "shards" / "test"}
  vlm eval {out / "finetune"} --data {out / "shards" / "test"}
"""
