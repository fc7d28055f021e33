"""An evaluation from a model and a folder of questions to its report."""

import time
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from pydantic import BaseModel, ConfigDict, PositiveInt
from rich.console import Console
from rich.progress import track

from data.pack import Manifest, file_sha256
from eval.baselines import Majority
from eval.predict import Prediction, predict
from eval.questions import read_questions
from eval.report import DataFacts, ModelFacts, Report, Run, build_report
from vlm.adapters.folder import WEIGHTS_FILE, is_adapter_folder, read_adapter_config
from vlm.api import Model
from vlm.errors import UserError
from vlm.provenance import commit, library_versions
from vlm.weights.folder import read_provenance
from vlm.weights.tensors import weight_files

# Batches whose pictures are decoded together: more sort better by length, fewer take less memory.
CHUNK_BATCHES = 4


class EvalConfig(BaseModel):
    """How questions are asked; answers are greedy, so that there is no seed.

    limit: ask the first so many questions only.
    max_tokens: an answer is cut off there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: PositiveInt | None = None
    batch_size: PositiveInt = 32
    max_tokens: PositiveInt = 32


@dataclass(frozen=True)
class Evaluation:
    """A report and the predictions that it counts."""

    report: Report
    predictions: list[Prediction]


def evaluate(
    model: Model,
    data: Path,
    config: EvalConfig | None = None,
    majority_from: Path | None = None,
) -> Evaluation:
    """Ask a model the questions of a folder of shards, with and without their pictures.

    Args:
        majority_from: shards whose answers the majority baseline counts; None: those of `data`.
    Raises:
        UserError: a folder is no packed data, holds no question, or differs from its manifest.
    """
    config = config or EvalConfig()
    start = time.perf_counter()
    manifest = Manifest.read(data)
    majority = None if majority_from is None else _count_majority(majority_from)
    predictions = _predict(model, data, manifest, config)
    if majority is None:
        majority = Majority.of((p.type, p.answer) for p in predictions)
    run = Run(
        model=model_facts(model.folder),
        data=_data_facts(data, config.limit),
        majority_from=None if majority_from is None else _data_facts(majority_from, None),
        batch_size=config.batch_size,
        max_tokens=config.max_tokens,
        device=str(model.device),
        commit=commit(),
        versions=library_versions(),
        seconds=round(time.perf_counter() - start, 3),
    )
    return Evaluation(build_report(predictions, majority, run), predictions)


def model_facts(folder: Path) -> ModelFacts:
    """What identifies a model folder."""
    provenance = read_provenance(folder)
    if is_adapter_folder(folder):
        files = [folder / WEIGHTS_FILE]
        base = {"base": read_adapter_config(folder).base.sha256}
    else:
        files, base = weight_files(folder), {}
    return ModelFacts(
        folder=str(folder),
        stage=provenance["stage"],
        weights_sha256={**{path.name: file_sha256(path) for path in files}, **base},
        seed=provenance["seed"],
        commit=provenance["commit"],
    )


def _predict(model: Model, data: Path, manifest: Manifest, config: EvalConfig) -> list[Prediction]:
    predictions = predict(
        islice(read_questions(data), config.limit),
        partial(model.answer_batch, batch_size=config.batch_size, max_tokens=config.max_tokens),
        CHUNK_BATCHES * config.batch_size,
    )
    # Captions are turns too, but no questions: the bar may end early.
    total = min(manifest.num_turns, config.limit or manifest.num_turns)
    console = Console(stderr=True)
    answered = list(track(predictions, "asking", total, console=console, transient=True))
    if not answered:
        raise UserError(f"{data} holds no question; captions are not asked")
    return answered


def _count_majority(folder: Path) -> Majority:
    answers = [(question.type, question.usual_answer) for question in read_questions(folder)]
    if not answers:
        raise UserError(f"{folder} holds no question to count answers of; captions do not count")
    return Majority.of(answers)


def _data_facts(folder: Path, limit: int | None) -> DataFacts:
    return DataFacts(folder=str(folder), manifest_sha256=Manifest.read(folder).sha256, limit=limit)
