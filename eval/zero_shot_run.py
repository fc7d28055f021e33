"""An evaluation of an encoder stage's towers, from its folder to the report."""

import time
from itertools import islice
from pathlib import Path

from eval.benchmark import BenchmarkConfig, describe
from eval.predictions import PredictionFile, discard, read_predictions
from eval.ranks import rank, wait_for_all
from eval.report import Run, build_report, write_report
from eval.run import (
    EvalConfig,
    Evaluation,
    data_facts,
    model_facts,
    prediction_settings,
    predictions_path,
    preprocessing,
)
from eval.scoring import read_answers, score
from eval.zero_shot import ZeroShot
from vlm.errors import UserError
from vlm.provenance import commit, library_versions


def evaluate_zero_shot(
    model: ZeroShot,
    benchmark: BenchmarkConfig,
    data: Path,
    out: Path,
    config: EvalConfig | None = None,
    command: str | None = None,
) -> Evaluation:
    """Classify or retrieve the pictures of a benchmark, and write the report.

    As `eval.run.evaluate`, without baselines. Predictions are kept all at once, for a retrieval is
    among all pictures; of several processes the first one makes them.

    Raises:
        UserError: files are missing or hold no items, or the benchmark is for whole models.
    """
    config = config or EvalConfig()
    start = time.perf_counter()
    left_out: list[str] = []
    items = list(islice(benchmark.items(data, left_out), config.limit))
    if not items:
        raise UserError(f"{data} holds no item of {benchmark.name}")
    ids = [item.id for item in items]
    place = model.device.type, model.dtype
    settings = prediction_settings(model.folder, benchmark, items, False, *place)
    path = predictions_path(out)
    if rank() == 0:
        if config.fresh:
            discard(path)
        with PredictionFile(path, settings) as file:
            if not set(ids) <= set(file.known):
                file.append(model.predict(benchmark, items))
        file.complete(ids)
    wait_for_all()
    _, predictions = read_predictions(path)
    items = [item.without_content() for item in items]
    scored = score(benchmark, items, read_answers(benchmark, items, predictions))
    run = Run(
        model=model_facts(model.folder),
        data=data_facts(benchmark, data, items, predictions, config.limit, len(left_out)),
        majority_from=None,
        benchmark=dict(describe(benchmark)),
        prompt="",
        preprocessing=preprocessing(model.processor.vision),
        max_answer_tokens=0,
        num_cut=0,
        batch_size=model.batch_size,
        device=str(model.device),
        dtype=model.dtype,
        commit=commit(),
        versions=library_versions(),
        seconds=round(time.perf_counter() - start, 3),
        command=command,
    )
    report = build_report(benchmark.title, {"model": scored}, run)
    if rank() == 0:
        write_report(out, report)
    return Evaluation(report, {"model": scored})
