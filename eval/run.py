"""An evaluation from a model and a benchmark to its report."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PositiveInt
from rich.console import Console
from rich.progress import Progress

from data.pack import file_sha256
from encoders.config import VisionConfig
from eval.benchmark import BenchmarkConfig, describe
from eval.items import Answer, Item, items_sha256
from eval.judge import current_grader
from eval.predict import Predictor, in_chunks
from eval.predictions import Prediction, PredictionFile, discard
from eval.prompts import Examples, Pictures
from eval.ranks import num_ranks, rank, wait_for_all
from eval.report import DataFacts, ModelFacts, Report, Run, Side, build_report, write_report
from eval.scoring import Scored, majority_answers, read_answers, score
from vlm.adapters.folder import WEIGHTS_FILE, is_adapter_folder, read_adapter_config
from vlm.api import Model
from vlm.errors import UserError
from vlm.provenance import commit, library_versions
from vlm.weights.folder import read_provenance
from vlm.weights.tensors import weight_files

# Settings of a benchmark that what a model says does not depend on.
NOT_ASKED = ("name", "rule", "metrics", "baselines", "normalise", "num_items")


class EvalConfig(BaseModel):
    """How items are asked.

    limit: ask the first so many only.
    fresh: ask all again instead of going on with predictions that are there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: PositiveInt | None = None
    batch_size: PositiveInt = 32
    fresh: bool = False


@dataclass(frozen=True)
class Evaluation:
    """A report and what it counts: the model's answers, and those of its baselines."""

    report: Report
    sides: dict[Side, Scored]

    @property
    def scored(self) -> Scored:
        """The model's own answers."""
        return self.sides["model"]


def evaluate(
    model: Model,
    benchmark: BenchmarkConfig,
    data: Path,
    out: Path,
    config: EvalConfig | None = None,
    majority_from: Path | None = None,
    command: str | None = None,
) -> Evaluation:
    """Ask a model the items of a benchmark, with and without their pictures, and write the report.

    Predictions are kept beside the report as they come; an evaluation that was killed goes on where
    it was. Several processes share the items, and the first one writes.

    Args:
        data: the folder of the benchmark's files.
        out: the report's JSON file.
        majority_from: data of the same benchmark whose answers the majority baseline counts; None:
            the items asked.
        command: what was typed, for the receipt.
    Raises:
        UserError: files are missing or hold no items, or predictions of another run are there.
    """
    config = config or EvalConfig()
    start = time.perf_counter()
    left_out: list[str] = []
    found = islice(benchmark.items(data, left_out), config.limit)
    items = [item.without_content() for item in found]
    if not items:
        raise UserError(f"{data} holds no item of {benchmark.name}")
    counted = items if majority_from is None else _kept(benchmark, majority_from)
    examples = Examples(benchmark, benchmark.examples(data))
    asking = _Asking(model, benchmark, data, config, examples, attacked_folder(out))
    predictions = asking.run(items, predictions_path(out))
    unseen = None
    if "blind" in benchmark.baselines and any(item.images for item in items):
        unseen = asking.run(items, predictions_path(out, "blind"), blind=True)
    sides = _measured(benchmark, items, predictions, unseen, counted)
    facts = data_facts(benchmark, data, items, predictions, config.limit, len(left_out))
    counted_facts = None
    if majority_from is not None:
        counted_facts = data_facts(benchmark, majority_from, counted, (), None)
    num_cut = sum(prediction.cut for prediction in predictions)
    run = asking.receipt(facts, counted_facts, num_cut, time.perf_counter() - start, command)
    report = build_report(benchmark.title, sides, run)
    if rank() == 0:
        write_report(out, report)
    return Evaluation(report, sides)


def predictions_path(out: Path, side: Side = "model") -> Path:
    """Where the predictions of a report are, those with pictures or without."""
    return out.with_suffix(".predictions.jsonl" if side == "model" else f".{side}.jsonl")


def attacked_folder(out: Path) -> Path:
    """Where some of the pictures of a report are that an attack made, by their SHA-256."""
    return out.with_suffix(".attacked")


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
        weights_sha256={**{path.name: _sha256_once(path) for path in files}, **base},
        seed=provenance["seed"],
        commit=provenance["commit"],
    )


def _sha256_once(path: Path) -> str:
    """The hash of a file; an unchanged one is read once, for weights may be many gigabytes."""
    state = path.stat()
    return _sha256_of_state(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _sha256_of_state(path: Path, size: int, mtime_ns: int) -> str:
    return file_sha256(path)


@dataclass(frozen=True)
class _Asking:
    """One model, one benchmark, one folder of data.

    attacked: where some attacked pictures are kept.
    """

    model: Model
    benchmark: BenchmarkConfig
    data: Path
    config: EvalConfig
    examples: Examples
    attacked: Path

    def run(self, items: Sequence[Item], path: Path, blind: bool = False) -> list[Prediction]:
        """The predictions of all items, asked by all processes; what a file has is not asked."""
        if self.config.fresh and rank() == 0:
            discard(path)
        wait_for_all()
        with PredictionFile(path, self._settings(items, blind), (rank(), num_ranks())) as file:
            own = {item.id for item in items[rank() :: num_ranks()]}
            complete = own <= file.known.keys()
            items_left = iter(()) if complete else self._items()
            share = (item for item in items_left if item.id in own)
            predictor = self._predictor(blind)
            console = Console(stderr=True)
            with Progress(console=console, transient=True, disable=rank() > 0) as progress:
                task = progress.add_task("asking blind" if blind else "asking", total=len(own))
                for chunk in in_chunks(share, self.config.batch_size):
                    # A chunk that a kill cut off is asked whole: the last bits of likelihoods
                    # depend on what shares a batch.
                    if any(item.id not in file.known for item in chunk):
                        file.append(predictor.predict(chunk))
                    progress.advance(task, len(chunk))
        wait_for_all()
        ids = [item.id for item in items]
        if rank() == 0:
            predictions = file.complete(ids)
        wait_for_all()
        return predictions if rank() == 0 else file.completed(ids)

    def first_prompt(self) -> str:
        """The first item's prompt as the model reads it."""
        prompt, _ = self._predictor(False).prompt(next(self._items()), Pictures())
        return prompt if isinstance(prompt, str) else self.model.prompt_text(prompt)

    def receipt(
        self,
        data: DataFacts,
        majority_from: DataFacts | None,
        num_cut: int,
        seconds: float,
        command: str | None,
    ) -> Run:
        """Everything that the figures depend on."""
        grader = current_grader()
        return Run(
            model=model_facts(self.model.folder),
            data=data,
            majority_from=majority_from,
            benchmark=dict(describe(self.benchmark)),
            prompt=self.first_prompt(),
            preprocessing=preprocessing(self.model.processor.vision),
            max_answer_tokens=self._predictor(False).max_answer_tokens,
            num_cut=num_cut,
            batch_size=self.config.batch_size,
            device=str(self.model.device),
            dtype=_dtype(self.model),
            commit=commit(),
            versions=library_versions(),
            seconds=round(seconds, 3),
            command=command,
            judge=None if grader is None else grader.judge.name,
        )

    def _predictor(self, blind: bool) -> Predictor:
        settings = self.model, self.benchmark, self.examples, self.config.batch_size
        return Predictor(*settings, blind, self.attacked)

    def _items(self) -> "islice[Item]":
        return islice(self.benchmark.items(self.data), self.config.limit)

    def _settings(self, items: Sequence[Item], blind: bool) -> dict[str, Any]:
        place = self.model.device.type, _dtype(self.model)
        return prediction_settings(self.model.folder, self.benchmark, items, blind, *place)


def prediction_settings(
    folder: Path,
    benchmark: BenchmarkConfig,
    items: Sequence[Item],
    blind: bool,
    device: str,
    dtype: str,
) -> dict[str, Any]:
    """What predictions depend on. The batch size is not among it."""
    asked = {name: value for name, value in describe(benchmark).items() if name not in NOT_ASKED}
    return {
        "weights_sha256": model_facts(folder).weights_sha256,
        "benchmark": asked,
        "items_sha256": items_sha256(items),
        "blind": blind,
        "device": device,
        "dtype": dtype,
        "commit": commit(),
        "versions": {name: library_versions()[name] for name in ("vlm", "torch")},
    }


def _measured(
    benchmark: BenchmarkConfig,
    items: Sequence[Item],
    predictions: Sequence[Prediction],
    unseen: Sequence[Prediction] | None,
    counted: Sequence[Item],
) -> dict[Side, Scored]:
    """The model's answers and those of the benchmark's baselines.

    Args:
        unseen: predictions without pictures, if that baseline was asked.
        counted: the items that the majority is counted on.
    """
    answers: dict[Side, list[Answer]] = {"model": read_answers(benchmark, items, predictions)}
    if unseen is not None:
        answers["blind"] = read_answers(benchmark, items, unseen)
    if "majority" in benchmark.baselines:
        answers["majority"] = majority_answers(items, counted)
    return {side: score(benchmark, items, given) for side, given in answers.items()}


def _kept(benchmark: BenchmarkConfig, data: Path) -> list[Item]:
    items = [item.without_content() for item in benchmark.items(data)]
    if not items:
        raise UserError(f"{data} holds no item to count answers of")
    return items


def data_facts(
    benchmark: BenchmarkConfig,
    folder: Path,
    items: Sequence[Item],
    predictions: Sequence[Prediction],
    limit: int | None,
    num_left_out: int = 0,
) -> DataFacts:
    """What was asked, for the receipt."""
    return DataFacts(
        folder=str(folder),
        sha256=items_sha256(items, (prediction.images for prediction in predictions)),
        num_items=len(items),
        limit=limit,
        num_left_out=num_left_out,
        num_published=benchmark.num_items,
    )


def preprocessing(vision: VisionConfig) -> dict[str, Any]:
    """What is done to pictures, for the receipt."""
    names = ("tile_size_px", "max_num_tiles", "image_mean", "image_std")
    return {name: value for name, value in vision.model_dump(mode="json").items() if name in names}


def _dtype(model: Model) -> str:
    return str(model.network.decoder.embed_tokens.weight.dtype).removeprefix("torch.")
