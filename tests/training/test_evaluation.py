"""Measuring while learning: sources apart, questions answered, and the best model kept."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.pack import pack
from data.shards import read_folder
from eval.benchmark import find_benchmark
from eval.run import EvalConfig, evaluate
from training.config import EvaluateConfig, TrainConfig
from training.evaluation import Questions, source_names
from training.metrics import METRICS_FILE, read_metrics
from training.run import train_stage
from training.summary import SUMMARY_FILE
from vlm.api import load
from vlm.errors import UserError
from vlm.weights.folder import read_component, read_provenance

MakeConfig = Callable[..., TrainConfig]


def records(config: TrainConfig, split: str) -> list[dict[str, Any]]:
    return [r for r in read_metrics(config.out / METRICS_FILE) if r["split"] == split]


def summary(config: TrainConfig) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((config.out / SUMMARY_FILE).read_text())
    return found


def test_each_source_is_validated_by_itself_and_all_together(
    stage_config: MakeConfig, shards: Path, tmp_path: Path
) -> None:
    samples = list(read_folder(shards / "validation"))
    pack(samples[:1], tmp_path / "one")
    pack(samples[1:], tmp_path / "rest")
    settings = {"validate_every": 2, "data": {"validation": [tmp_path / "one", tmp_path / "rest"]}}
    config = stage_config("finetune", tmp_path / "out", **settings)
    train_stage(config)
    together = records(config, "validation")
    one, rest = (records(config, f"validation/{name}") for name in ("one", "rest"))
    assert [r["step"] for r in together] == [r["step"] for r in one] == [2, 3]
    for all_, first, second in zip(together, one, rest, strict=True):
        low, high = sorted((first["loss"], second["loss"]))
        assert low < all_["loss"] < high


def test_a_single_source_is_validated_once(stage_config: MakeConfig, tmp_path: Path) -> None:
    config = stage_config("finetune", tmp_path / "out")
    train_stage(config)
    splits = {r["split"] for r in read_metrics(config.out / METRICS_FILE)}
    assert splits == {"train", "validation"}


def test_sources_of_the_same_name_are_told_apart() -> None:
    assert source_names(["a/x", "b/y"]) == ["x", "y"]
    assert source_names(["a/x", "b/x/", "s3://c/y"]) == ["a/x", "b/x", "c/y"]
    assert source_names(["a/x", "a/x"]) == ["a/x (0)", "a/x (1)"]


def test_questions_are_answered_as_vlm_eval_does_and_the_rest_of_the_run_stays_as_it_is(
    stage_config: MakeConfig, shards: Path, tmp_path: Path
) -> None:
    asked = {"data": shards / "validation", "every": 1, "max_questions": 9, "max_tokens": 4}
    config = stage_config("finetune", tmp_path / "out", evaluate=asked, steps=2)
    train_stage(config)
    found = records(config, "evaluation")
    assert [r["step"] for r in found] == [1, 2]
    benchmark = find_benchmark("shards", ("decoding.max_tokens=4",))
    out, limits = tmp_path / "report.json", EvalConfig(limit=9)
    report = evaluate(load(config.out), benchmark, shards / "validation", out, limits).report
    assert found[-1]["accuracy"] == report.overall.headline().value
    kinds = {name.partition("/")[2] for name in found[-1] if name.startswith("accuracy/")}
    assert kinds == set(report.types)
    plain = stage_config("finetune", tmp_path / "plain", steps=2)
    train_stage(plain)
    for component in ("encoder", "projector", "decoder"):
        one, other = (read_component(c.out, component) for c in (config, plain))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_pictures_are_encoded_anew_each_time_that_questions_are_asked(
    stage_config: MakeConfig, shards: Path, tmp_path: Path
) -> None:
    """What was kept of them belongs to weights that have changed since."""
    config = stage_config("finetune", tmp_path / "out", steps=1)
    train_stage(config)
    asked = EvaluateConfig(data=shards / "validation", every=1, max_questions=4, max_tokens=2)
    questions = Questions(load(config.out), asked)
    calls: list[int] = []
    encoder = questions.model.network.encoder
    encoder.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    questions.figures()
    first = list(calls)
    questions.figures()
    assert first and calls == 2 * first


def test_the_best_model_is_kept_beside_the_last_one(
    stage_config: MakeConfig, tmp_path: Path, shards: Path
) -> None:
    # A rate that grows beyond what training survives: the best step is an early one.
    settings: dict[str, Any] = {
        "steps": 6,
        "validate_every": 1,
        "optim": {"learning_rate": 3.0, "warmup_steps": 1000},
        "keep_best": {"figure": "validation/loss", "mode": "min"},
        "keep_checkpoints": 1,
    }
    rising = {"learning_rate": 0.5, "warmup_steps": 6}
    config = stage_config("finetune", tmp_path / "out", **{**settings, "optim": rising})
    train_stage(config)
    losses = {r["step"]: r["loss"] for r in records(config, "validation")}
    best = min(losses, key=losses.__getitem__)
    assert best < 6
    assert summary(config)["best"] == {
        "step": best,
        "figure": "validation/loss",
        "value": losses[best],
    }
    names = {path.name for path in (config.out / "checkpoints").iterdir()}
    assert f"step-{best:08d}" in names and len(names) <= 2
    assert read_provenance(config.out / "best")["steps"] == best
    # It is the model that a run of so many steps ends with: the rate depends on no later step.
    short = stage_config("finetune", tmp_path / "short", steps=best, optim=rising)
    train_stage(short)
    for component in ("encoder", "projector", "decoder"):
        one, other = (read_component(f, component) for f in (config.out / "best", short.out))
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert load(config.out / "best").ask([], "hello", max_tokens=1) is not None


def test_a_figure_that_nobody_measures_is_refused(stage_config: MakeConfig, tmp_path: Path) -> None:
    best = {"figure": "validation/los", "mode": "min"}
    config = stage_config("finetune", tmp_path / "out", keep_best=best)
    with pytest.raises(UserError, match=r"validation/los is not measured; there are validation/l"):
        train_stage(config)
    best = {"figure": "evaluation/accuracy", "mode": "max"}
    with pytest.raises(ValueError, match=r"is not measured; set"):
        stage_config("finetune", tmp_path / "out", keep_best=best)


def test_averages_are_saved_restored_and_written_when_asked(
    stage_config: MakeConfig, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"steps": 4, "checkpoint_every": 2, "validate_every": 4}
    written = {}
    for name, ema in (
        ("plain", None),
        ("beside", {"decay": 0.5}),
        ("averaged", {"decay": 0.5, "write": True}),
    ):
        config = stage_config("align", tmp_path / name, ema=ema, **settings)
        train_stage(config)
        written[name] = read_component(config.out, "projector")
    assert all(t.equal(written["beside"][name]) for name, t in written["plain"].items())
    assert not any(t.equal(written["averaged"][name]) for name, t in written["plain"].items())
    # Resumed from the checkpoint, the averages end the same.
    out = tmp_path / "resumed"
    shutil.copytree(tmp_path / "averaged", out)
    (out / "config.json").unlink()
    config = stage_config("align", out, ema={"decay": 0.5, "write": True}, **settings)
    train_stage(config, resume=True)
    resumed = read_component(out, "projector")
    assert all(t.equal(resumed[name]) for name, t in written["averaged"].items())


def test_a_run_ends_with_a_summary_of_what_it_did(stage_config: MakeConfig, tmp_path: Path) -> None:
    config = stage_config("finetune", tmp_path / "out", deterministic=True)
    result = train_stage(config)
    assert not torch.are_deterministic_algorithms_enabled()
    found = summary(config)
    assert (found["ending"], found["why"], found["step"]) == ("finished", None, 3)
    assert found["figures"] == result.figures and found["resumed_from"] is None
    assert found["peak_memory_bytes"] > 1e8 and "torch" in found["versions"]
    (*_, last) = records(config, "train")
    for name in ("data_wait", "pictures_per_s", "tokens_per_s", "memory_gb", "gradient_norm"):
        assert last[name] >= 0
    norms = [v for name, v in last.items() if name.startswith("gradient_norm/")]
    # The parts' gradients are the whole gradient, cut into pieces.
    assert sum(v**2 for v in norms) ** 0.5 == pytest.approx(last["gradient_norm"], rel=1e-5)
    assert {name for name in last if name.startswith("gate/")} >= {
        "gate/decoder.layers.3.attn_gate",
        "gate/decoder.layers.8.mlp_gate",
    }
