"""Two runs compared: figures, flips, refusals, and the page, on made-up answers."""

import json
import re
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data.shape_samples import write_scenes
from data.shapes import SceneConfig
from eval.benchmark import find_benchmark
from eval.compare import Comparison, compare
from eval.compare_page import write_comparison
from eval.compare_report import verdict
from eval.finished_run import FinishedRun, differences
from eval.items import Item
from vlm import cli
from vlm.errors import UserError

HOSTILE = "<script>alert('\"&')</script>"
Finish = Callable[..., Path]


def right(item: Item) -> str:
    return item.answers[0]


def wrong_about(*types: str) -> Callable[[Item], str]:
    return lambda item: HOSTILE if item.type in types else right(item)


def compared(a: Path, b: Path) -> Comparison:
    runs = FinishedRun.read(a), FinishedRun.read(b)
    return compare(runs[0].benchmark, runs[0].scored, runs[1].scored)


@pytest.fixture
def runs(finish: Finish, scenes: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A is wrong about all counts and every colour; B about the colours alone, and existence."""
    a = finish(tmp_path / "a.json", scenes, wrong_about("count", "colour"), "runs/a")
    b = finish(tmp_path / "b.json", scenes, wrong_about("colour", "existence"), f"runs/{HOSTILE}")
    return a, b


def test_flips_are_the_items_that_one_model_alone_has_right(
    runs: tuple[Path, Path], scenes: Path
) -> None:
    found = compared(*runs)
    items = list(find_benchmark("shards").items(scenes))
    assert {each.item.type for each in found.gained} == {"count"}
    assert {each.item.type for each in found.lost} == {"existence"}
    kinds = [item.type for item in items]
    assert len(found.gained) == kinds.count("count") > 0
    assert len(found.lost) == kinds.count("existence") > 0
    gain = (len(found.gained) - len(found.lost)) / len(items)
    assert found.headline.difference.value == pytest.approx(gain)
    assert found.headline.difference.low <= gain <= found.headline.difference.high
    assert (found.only_a, found.only_b) == (0, 0)


def test_types_have_their_own_differences_and_larger_p_values(runs: tuple[Path, Path]) -> None:
    rows = {row.kind: row for row in compared(*runs).types}
    assert (rows["count"].a, rows["count"].b, rows["count"].difference.value) == (0, 1, 1)
    assert rows["existence"].difference.value == -1
    assert rows["colour"].difference.value == 0 and rows["colour"].p_value == 1
    assert all(row.p_value >= row.difference.p_value for row in rows.values())
    assert rows["count"].p_value > rows["count"].difference.p_value


def test_questions_about_a_picture_are_no_independent_evidence(runs: tuple[Path, Path]) -> None:
    assert compared(*runs).headline.difference.test == "sign flips"


def test_swapped_models_have_the_opposite_difference(runs: tuple[Path, Path]) -> None:
    there, back = compared(*runs).headline, compared(*reversed(runs)).headline
    assert there.difference.value == -back.difference.value
    assert there.difference.low == pytest.approx(-back.difference.high)
    assert there.p_value == back.p_value


def test_the_verdict_names_the_better_model_only_if_chance_does_not_explain_it(
    finish: Finish, scenes: Path, tmp_path: Path
) -> None:
    a = finish(tmp_path / "a.json", scenes, wrong_about("count", "colour"))
    b = finish(tmp_path / "b.json", scenes, right)
    assert verdict(compared(a, b)).startswith("B is better")
    assert verdict(compared(b, a)).startswith("A is better")
    assert "cannot be told apart" in verdict(compared(a, a))


def test_unlike_runs_are_refused_field_by_field(
    runs: tuple[Path, Path],
    finish: Finish,
    tmp_path: Path,
    scenes: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompt = "prompt=Look. {question}"
    other = finish(tmp_path / "other.json", scenes, right, overrides=(prompt,), limit=20)
    assert cli.main(["eval", "compare", str(runs[0]), str(other)]) == 2
    message = capsys.readouterr().err
    assert "benchmark.prompt: '{question}' and 'Look. {question}'" in message
    assert "data.limit: None and 20" in message and "--force" in message
    assert cli.main(["eval", "compare", str(runs[0]), str(other), "--force"]) == 0
    found = compared(runs[0], other)
    assert len(found.both) == 20 and found.only_b == 0 and found.only_a > 0


def test_a_change_of_the_machine_is_told_and_not_refused(
    finish: Finish, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = finish(tmp_path / "a.json", scenes, right)
    b = finish(tmp_path / "b.json", scenes, right, versions={"torch": "3"})
    assert cli.main(["eval", "compare", str(a), str(b)]) == 0
    assert "versions.torch: 2 and 3" in capsys.readouterr().out


def test_data_that_has_changed_since_is_refused(
    runs: tuple[Path, Path], tmp_path: Path, scenes: Path
) -> None:
    write_scenes(tmp_path / "others", 12, 1, SceneConfig(tile_size_px=24))
    with pytest.raises(UserError, match=r"no prediction for \d+ of"):
        FinishedRun.read(runs[0], tmp_path / "others")
    assert FinishedRun.read(runs[0], scenes).scored.items
    # The same items, with another answer that counts: here, another hash.
    measured_on = FinishedRun.read(runs[0]).receipt["data"]["sha256"]
    runs[0].write_text(runs[0].read_text().replace(measured_on, "0" * 64))
    with pytest.raises(UserError, match=r"does not hold what .* was measured on"):
        FinishedRun.read(runs[0])


def test_reports_and_predictions_that_are_missing_or_damaged_are_named(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        FinishedRun.read(tmp_path / "none.json")
    (tmp_path / "odd.json").write_text('{"benchmark": 1}')
    with pytest.raises(UserError, match="no report"):
        FinishedRun.read(tmp_path / "odd.json")
    predictions = runs[0].with_suffix(".predictions.jsonl")
    lines = predictions.read_text().splitlines(keepends=True)
    predictions.write_text("".join(lines[:-2]))
    with pytest.raises(UserError, match="no prediction for 2 of"):
        FinishedRun.read(runs[0])


def test_receipts_differ_in_the_models_alone(runs: tuple[Path, Path]) -> None:
    a, b = (FinishedRun.read(path) for path in runs)
    everything = ("model", "data", "benchmark", "versions", "device")
    assert set(differences(a, b, everything)) == {
        "model.folder",
        "model.weights_sha256.w",
    }


def test_predictions_made_elsewhere_are_compared_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "easy"
    folder.mkdir()
    questions = [[f"is there a circle {n}?", "yes", n] for n in range(12)]
    (folder / "questions.json").write_text(json.dumps(questions))
    benchmark = find_benchmark("easy_vqa")
    files = []
    for name, said in (("a", "no"), ("b", "yes")):
        rows = [
            {"id": item.id, "prediction": said} for item in benchmark.items(folder, names_only=True)
        ]
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(rows))
    page = tmp_path / "page.html"
    arguments = ["eval", "compare", *map(str, files), "--benchmark", "easy_vqa"]
    assert cli.main(arguments) == 2 and "--data" in capsys.readouterr().err
    assert cli.main([*arguments, "--data", str(folder), "--out", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "McNemar" in printed and "B is better" in printed and "+100.0" in printed
    assert "known by its name only" in page.read_text()


class Outline(HTMLParser):
    """The tags and addresses of a page; each tag that opens must close in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.urls: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.urls += [value or "" for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_shows_flips_with_their_pictures_and_needs_nothing_else(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    a, b = (FinishedRun.read(path) for path in runs)
    comparison = compare(a.benchmark, a.scored, b.scored)
    write_comparison(tmp_path / "page.html", comparison, a, b)
    html = (tmp_path / "page.html").read_text("utf-8")
    outline = Outline(html)
    assert outline.urls and all(url.startswith("data:image/") for url in outline.urls)
    assert not {"script", "link", "iframe"} & set(outline.tags)
    assert HOSTILE not in html and "&lt;script&gt;" in html
    gained, lost = html.split("<section>")[2:4]
    assert "B is right where A is not" in gained and "A is right where B is not" in lost
    question = unescape(re.findall(r"<p class=question>(.*?)</p>", gained)[0])
    assert question in {each.item.question for each in comparison.gained}
    assert gained.count("<article>") == gained.count("<img") == 12
    assert f"{len(comparison.gained)}" in gained


def test_the_command_prints_the_table_and_writes_the_page(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "pages" / "ab.html"
    assert cli.main(["eval", "compare", *map(str, runs), "--out", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "B - A" in printed and "count" in printed and "sign" in printed
    assert page.is_file() and f"page: {page}" in " ".join(printed.split())
    assert cli.main(["eval", "compare", *map(str, runs), "--out", "page.txt"]) == 2
