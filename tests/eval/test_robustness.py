"""A benchmark under corruptions and attacks, on a tiny random model and a few rendered scenes."""

from hashlib import sha256
from pathlib import Path

import pytest

import vlm
from data.pack import pack
from data.schema import ImagePart, Message, RawSample, Sample, TextPart
from eval.benchmark import BenchmarkConfig, find_benchmark
from eval.conditions import CORRUPTIONS, Corruption, PgdAttack, read_conditions
from eval.corruptions import corrupt
from eval.intervals import Figure
from eval.items import Item
from eval.predictions import read_predictions
from eval.report import Report
from eval.robustness import (
    RobustnessReport,
    Row,
    Sweep,
    corruption_cells,
    gather,
    markdown,
    measure_robustness,
)
from eval.robustness_page import write_page
from eval.run import EvalConfig, attacked_folder, predictions_path
from vlm import cli
from vlm.errors import UserError

CONFIG = EvalConfig(limit=8, batch_size=4)
SHORT = ("decoding.max_tokens=3",)
CONDITIONS = [Corruption(kind="noise", severity=5), PgdAttack(eps=32 / 255, steps=2)]


@pytest.fixture(scope="module")
def shards() -> BenchmarkConfig:
    return find_benchmark("shards", SHORT)


@pytest.fixture(scope="module")
def sweep(
    model: vlm.Model,
    shards: BenchmarkConfig,
    scenes: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Sweep:
    out = tmp_path_factory.mktemp("sweep") / "scenes.json"
    return measure_robustness(model, shards, scenes, out, CONDITIONS, CONFIG)


def test_pictures_are_damaged_as_the_benchmark_says_and_answers_come_from_them(
    sweep: Sweep, model: vlm.Model, shards: BenchmarkConfig, scenes: Path
) -> None:
    clean = list(shards.items(scenes))[: CONFIG.limit]
    _, predictions = read_predictions(sweep.folder / "noise-5.predictions.jsonl")
    for item, prediction in zip(clean, predictions, strict=True):
        [picture] = item.images
        damaged = corrupt(picture.read(), Corruption(kind="noise", severity=5), picture.name)
        assert prediction.images == (sha256(damaged).hexdigest(),)
        assert prediction.text == model.ask(damaged, item.question, max_tokens=3)
        assert prediction.attack is None


def test_answers_under_attack_are_to_the_pictures_that_are_kept(
    sweep: Sweep, model: vlm.Model, shards: BenchmarkConfig, scenes: Path
) -> None:
    report = sweep.folder / "pgd-32-255-2-steps.json"
    _, predictions = read_predictions(predictions_path(report))
    for item, prediction in zip(shards.items(scenes), predictions, strict=False):
        kept = attacked_folder(report) / f"{prediction.images[0]}.png"
        assert prediction.text == model.ask(kept, item.question, max_tokens=3)
        assert prediction.attack is not None
        assert 0 < prediction.attack.distance <= 32 / 255
        assert prediction.attack.loss >= prediction.attack.loss_before
    attacked = [p.attack for p in predictions if p.attack is not None]
    [row] = sweep.report.attacks
    assert row.distance == pytest.approx(sum(a.distance for a in attacked) / len(attacked))
    assert row.loss is not None and row.loss_before is not None and row.loss > row.loss_before


def test_conditions_stand_in_the_receipts_and_have_no_baselines(sweep: Sweep) -> None:
    noise, pgd = sweep.changed.values()
    assert noise.report.run.benchmark["corruption"]["kind"] == "noise"
    assert pgd.report.run.benchmark["attack"]["steps"] == 2
    assert noise.report.sides == pgd.report.sides == ["model"]
    assert sweep.report.clean.sides == ["model", "blind", "majority"]
    assert "attack" not in sweep.report.clean.run.benchmark


def test_a_sweep_goes_on_where_it_was_and_writes_the_same(
    sweep: Sweep, model: vlm.Model, shards: BenchmarkConfig, scenes: Path
) -> None:
    files = sorted(sweep.folder.glob("*.jsonl"))
    before = {path: path.read_bytes() for path in files}
    cut = sweep.folder / "noise-5.predictions.jsonl"
    cut.write_bytes(b"".join(before[cut].splitlines(keepends=True)[:4]))
    out = sweep.folder.with_suffix(".json")
    again = measure_robustness(model, shards, scenes, out, CONDITIONS, CONFIG)
    assert {path: path.read_bytes() for path in files} == before
    assert [row.figure for row in again.report.rows] == [row.figure for row in sweep.report.rows]
    assert RobustnessReport.model_validate_json(out.read_text()) == again.report


def test_the_page_shows_curves_and_items_that_an_attack_turned(
    model: vlm.Model, shards: BenchmarkConfig, scenes: Path, tmp_path: Path
) -> None:
    """What the random model says to clean pictures counts as right here."""
    own = tmp_path / "own"
    items = list(shards.items(scenes))[: CONFIG.limit]
    pack([as_answered(item, model) for item in items], own)
    attack = PgdAttack(eps=1.0, steps=4)
    conditions = [Corruption(kind="blur", severity=1), Corruption(kind="blur", severity=5), attack]
    found = measure_robustness(model, shards, own, tmp_path / "r.json", conditions, CONFIG)
    assert found.report.clean.overall.headline().value == 1
    [row] = found.report.attacks
    assert row.figure.value is not None and row.figure.value < 1
    write_page(tmp_path / "r.html", found, shards, own, model.processor)
    page = (tmp_path / "r.html").read_text()
    assert page.count("severity 1: ") == page.count("severity 5: ") == 1
    assert "severity 2" not in page
    num_shown = page.count('<dt><i class="mark wrong"')
    # Two of the corruption, and each canvas as it was, attacked, and the difference.
    assert num_shown > 0 and page.count("<img") == 2 + 3 * num_shown


def as_answered(item: Item, model: vlm.Model) -> RawSample:
    content = item.images[0].read()
    said = model.ask(content, item.question, max_tokens=3)
    sample = Sample(
        messages=(
            Message(role="user", content=(ImagePart(), TextPart(text=item.question))),
            Message(role="assistant", content=(TextPart(text=said),)),
        )
    )
    return RawSample(item.id.replace("#", "-"), sample, [content])


def row(condition: Corruption, value: float) -> Row:
    figure = Figure(value=value, low=value, high=value)
    return Row(label=condition.label, condition=condition, figure=figure, relative=None, report="")


def test_in_the_mean_every_kind_counts_once(sweep: Sweep) -> None:
    clean = with_figure(sweep.report.clean, 0.8)
    rows = [row(Corruption(kind="blur", severity=s), 0.1 * s) for s in (1, 2, 3)]
    found = gather(clean, [*rows, row(Corruption(kind="jpeg", severity=1), 0.6)], 1.0)
    assert found.mean_corruption == pytest.approx((0.2 + 0.6) / 2)
    assert found.mean_relative == pytest.approx(0.4 / 0.8)
    head, blur, jpeg = corruption_cells(found)
    assert head == ["corruption", "1", "2", "3", "4", "5", "mean", "change"]
    assert blur == ["blur", "10.0", "20.0", "30.0", "-", "-", "20.0", "-75.0 %"]
    assert jpeg == ["jpeg", "60.0", "-", "-", "-", "-", "60.0", "-25.0 %"]
    assert "| blur | 10.0 | 20.0 | 30.0 | - | - | 20.0 | -75.0 % |" in markdown(found)


def test_without_corruptions_there_is_no_mean(sweep: Sweep) -> None:
    found = gather(sweep.report.clean, [], 1.0)
    assert found.mean_corruption is None and found.mean_relative is None


def with_figure(report: Report, value: float) -> Report:
    figure = Figure(value=value, low=value, high=value)
    overall = report.overall.model_copy(update={"figures": {"model": {report.headline: figure}}})
    return report.model_copy(update={"overall": overall})


def test_a_benchmarks_file_may_have_conditions() -> None:
    config = find_benchmark(
        "shards",
        ("corruption.kind=blur", "corruption.severity=3", "attack.kind=pgd", "attack.eps=4/255"),
    )
    assert config.corruption == Corruption(kind="blur", severity=3)
    assert config.attack == PgdAttack(eps=4 / 255)
    with pytest.raises(UserError, match="corruption already"):
        config.under(Corruption(kind="jpeg", severity=1))
    with pytest.raises(UserError, match="few_shot"):
        find_benchmark("shards", ("few_shot.num_examples=1",)).under(PgdAttack(eps=0.1))


def test_words_name_all_conditions_once() -> None:
    found = read_conditions(["all"], ["pgd:eps=1/255", "pgd:eps=2/255"])
    assert len(found) == 5 * len(CORRUPTIONS) + 2
    with pytest.raises(UserError, match="'blur 3' is asked for twice"):
        read_conditions(["blur", "blur:3"], [])


def test_the_command_prints_tables_and_writes_the_files(
    model_folder: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    words = ["--corruption", "blur:3", "--attack", "pgd:eps=8/255,steps=1", "--limit", "2"]
    arguments = ["eval", str(model_folder), "--data", str(scenes), "--out", str(out), *words]
    assert cli.main([*arguments, "--device", "cpu", *SHORT]) == 0
    printed = capsys.readouterr().out
    assert "mean under corruption" in printed and "pgd 8/255" in printed
    report = RobustnessReport.model_validate_json(out.read_text())
    assert [row.label for row in report.rows] == ["blur 3", "pgd 8/255, 1 step"]
    assert (tmp_path / report.rows[0].report).is_file()
    assert out.with_suffix(".md").read_text().startswith("# Robustness of ")
    assert "<svg" in out.with_suffix(".html").read_text()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--corruption", "fog:3"], "fog"),
        (["--attack", "pgd:eps=2"], "eps"),
        (["--attack", "pgd:eps=1/255", "few_shot.num_examples=1"], "few_shot"),
        (["--corruption", "blur:3", "corruption.kind=jpeg", "corruption.severity=1"], "already"),
    ],
)
def test_a_mistake_is_one_line_before_the_model_is_loaded(
    words: list[str], part: str, scenes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["eval", "no-model", "--data", str(scenes), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert part in error and len(error.splitlines()) == 1
