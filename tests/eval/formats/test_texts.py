"""Published files of text benchmarks become the items that their authors ask."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import text_benchmarks as published
from text_benchmarks import TEXT_BENCHMARK_WRITERS

from eval.benchmark import BenchmarkConfig, find_benchmark
from eval.files import Files
from eval.formats import gsm8k, mt_bench, truthfulqa, wikitext
from eval.items import Answer, Item
from eval.judge import GradingPrompt
from eval.metrics.table import find_metric
from eval.prompts import Examples, choice_texts, raw_prompt
from vlm.errors import UserError

REAL = Path(__file__).resolve().parents[3].parent / "shared/data/text-benchmarks"


def read(name: str, folder: Path, *overrides: str) -> list[Item]:
    return list(find_benchmark(name, overrides).items(folder))


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """`write(name)`: the folder of a benchmark's made-up files."""

    def make(name: str) -> Path:
        TEXT_BENCHMARK_WRITERS[name](tmp_path)
        return tmp_path

    return make


def shown(name: str, folder: Path) -> tuple[BenchmarkConfig, Item, str]:
    """A benchmark, its first item, and the raw prompt of it."""
    benchmark = find_benchmark(name)
    item = next(benchmark.items(folder))
    examples = Examples(benchmark, benchmark.examples(folder)).of(item)
    return benchmark, item, raw_prompt(benchmark, item, examples)


@pytest.mark.parametrize("name", TEXT_BENCHMARK_WRITERS)
def test_every_text_benchmark_reads_its_published_layout(name: str, write: Any) -> None:
    folder = write(name)
    items = read(name, folder)
    assert len({item.id for item in items}) == len(items) >= 2
    benchmark = find_benchmark(name)
    if benchmark.ask == "choose":
        assert all(len(item.choices) >= 2 for item in items)
    for metric in benchmark.metrics:
        find_metric(metric)


def test_mmlu_is_the_same_in_folders_and_in_a_tar(tmp_path: Path, write: Any) -> None:
    archive = tmp_path / "archive"
    archive.mkdir()
    published.write_mmlu_archive(archive / "mmlu.tar.gz")
    plain = tmp_path / "plain"
    plain.mkdir()
    published.write_mmlu(plain)
    benchmark = find_benchmark("mmlu")
    assert list(benchmark.items(archive)) == list(benchmark.items(plain))
    assert benchmark.examples(archive) == benchmark.examples(plain)


def test_mmlu_asks_as_its_authors_do(write: Any) -> None:
    benchmark, item, prompt = shown("mmlu", write("mmlu"))
    blocks = prompt.split("\n\n")
    assert blocks[0] == (
        "The following are multiple choice questions (with answers) about anatomy."
    )
    assert [block.splitlines()[-1] for block in blocks[1:]] == [
        "Answer: A", "Answer: B", "Answer: C", "Answer: D", "Answer: A", "Answer:",
    ]  # fmt: skip
    assert blocks[-1] == (
        "Which anatomy shape comes 1. in test?\n"
        "A. circle\nB. square\nC. triangle\nD. hexagon\nAnswer:"
    )
    assert choice_texts(benchmark, item) == [" A", " B", " C", " D"]


def test_mmlu_names_a_row_whose_answer_is_no_option(tmp_path: Path) -> None:
    (tmp_path / "anatomy_test.csv").write_text("How?,a,b,c,d,E\n")
    with pytest.raises(UserError, match=r"anatomy_test.csv, question 1: 'E' is none of its 4"):
        read("mmlu", tmp_path)
    (tmp_path / "anatomy_test.csv").write_text("How?,a\n")
    with pytest.raises(UserError, match=r"question 1 has 2 cells"):
        read("mmlu", tmp_path)


def test_mmlu_reads_the_table_of_the_hub(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "all").mkdir()
    rows = {
        "subject": ["anatomy", "anatomy", "virology"],
        "question": ["Q1", "Q2", "Q3"],
        "choices": [["a", "b", "c", "d"]] * 3,
        "answer": [3, 0, 1],
    }
    parquet.write_table(pyarrow.table(rows), tmp_path / "all/test-00000-of-00001.parquet")
    items = read("mmlu", tmp_path)
    assert [item.id for item in items] == ["anatomy/test/0", "anatomy/test/1", "virology/test/0"]
    assert [item.correct for item in items] == [(3,), (0,), (1,)]


@pytest.mark.parametrize(
    ("name", "path", "rows"),
    [
        (
            "gsm8k",
            "main/test-00000-of-00001.parquet",
            [published.gsm8k_row(number) for number in (1, 2, 3)],
        ),
        (
            "humaneval",
            "openai_humaneval/test-00000-of-00001.parquet",
            [published.humaneval_row(number) for number in (0, 1, 2)],
        ),
        (
            "truthfulqa",
            "multiple_choice/validation-00000-of-00001.parquet",
            [
                {
                    "question": row["question"],
                    **{
                        name: {"choices": list(row[name]), "labels": list(row[name].values())}
                        for name in ("mc1_targets", "mc2_targets")
                    },
                }
                for row in published.truthfulqa_rows()
            ],
        ),
    ],
)
def test_the_tables_of_the_hub_hold_the_same(
    name: str, path: str, rows: list[dict[str, Any]], tmp_path: Path, write: Any
) -> None:
    import pyarrow
    from pyarrow import parquet

    table = tmp_path / "hub" / path
    table.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    plain = [replace(item, type="all") for item in read(name, write(name))]
    assert read(name, tmp_path / "hub") == plain


def test_gsm8k_shows_worked_answers_of_the_first_training_problems(write: Any) -> None:
    _, item, prompt = shown("gsm8k", write("gsm8k"))
    assert item.answers == ("1001",)
    blocks = prompt.split("\n\n")
    assert len(blocks) == 9
    assert blocks[0] == (
        "Question: A box holds 10 circles. A thousand more come. How many are there?\n"
        "Answer: There are 10+1000=<<10+1000=1010>>1010 circles.\n#### 1010"
    )
    assert blocks[-1].endswith("How many are there?\nAnswer:")


def test_gsm8k_leaves_out_calculations_on_request(write: Any) -> None:
    files = Files(write("gsm8k"), {"questions": "test.jsonl"})
    item = next(gsm8k.read(files, {"calculations": False}))
    assert item.fields["shown_answer"] == "There are 1+1000=1001 circles.\n#### 1001"
    with pytest.raises(UserError, match="this format's options: calculations"):
        next(gsm8k.read(files, {"calculation": False}))


def test_humaneval_repeats_a_problem_as_a_group(write: Any) -> None:
    items = read("humaneval", write("humaneval"), "options.samples=3")
    assert [item.id for item in items[:4]] == [
        "HumanEval/0", "HumanEval/0+1", "HumanEval/0+2", "HumanEval/1",
    ]  # fmt: skip
    assert {item.group for item in items[:3]} == {"HumanEval/0"}
    assert items[0].question.endswith('"""Add 0 to x."""\n')


def test_truthfulqa_asks_both_sets_at_once(write: Any) -> None:
    benchmark, item, prompt = shown("truthfulqa", write("truthfulqa"))
    assert item.choices == (
        "It has 4.", "It has a thousand.", "Nobody counted.", "There are 4 of them.",
    )  # fmt: skip
    assert item.facts == {
        "mc1": {"true": [0], "false": [1, 2]},
        "mc2": {"true": [0, 3], "false": [1, 2]},
    }
    assert item.correct == (0,)
    assert item.type == "Corners"
    assert prompt.endswith("Barcelona, Spain.\n\nQ: How many corners has a square?\nA:")
    assert choice_texts(benchmark, item)[0] == " It has 4."


def test_truthfulqa_makes_sets_of_the_table_as_its_authors_do(write: Any) -> None:
    folder = write("truthfulqa")
    (folder / "mc_task.json").unlink()
    item = read("truthfulqa", folder)[1]
    assert item.choices == ("It has 3.", "A lot.", "Nobody counted.", "There are 3 of them.")
    assert item.facts["mc2"] == {"true": [0, 3], "false": [1, 2]}
    assert item.type == "Angles"


def test_truthfulqa_reads_the_hubs_lists(tmp_path: Path) -> None:
    targets = {"choices": ["Yes.", "No.", "Never."], "labels": [1, 0, 0]}
    row = {"question": "Is it?", "mc1_targets": targets, "mc2_targets": targets}
    (tmp_path / "questions.json").write_text(json.dumps([row]))
    (item,) = truthfulqa.read(Files(tmp_path, {"questions": "questions.json"}), {})
    assert item.facts["mc1"] == {"true": [0], "false": [1, 2]}
    row["mc1_targets"] = {"Yes.": 1}
    (tmp_path / "questions.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match=r"questions.json:1 has 1 true and 0 false answers \(mc1\)"):
        list(truthfulqa.read(Files(tmp_path, {"questions": "questions.json"}), {}))


def test_bbq_says_which_answer_a_stereotype_would_give(write: Any) -> None:
    benchmark, item, prompt = shown("bbq", write("bbq"))
    assert prompt == "A square and a circle met.\n\nQ: Who was slow?\nA:"
    items = list(benchmark.items(write("bbq")))
    # The square one where the question is negative, else the other.
    assert [item.facts["biased"] for item in items] == [0, 2, 0, 2]
    assert [item.facts["ambiguous"] for item in items] == [True, True, False, False]
    assert all(item.facts["unknown"] == (1,) for item in items)
    assert item.id == "Shape/0"


@pytest.mark.parametrize(
    ("groups", "answers", "biased"),
    [
        (["F", "African American"], (["Tamika", "F-Black"], ["Bob", "M-White"]), 0),
        (["low SES"], (["rich", "highSES"], ["poor", "lowSES"]), 1),
        (["M"], (["the nurse", "woman"], ["the pilot", "man"]), 1),
        (["Square"], (["square", "Square"], ["Square", "Square"]), None),
        ([], (["square", "Square"], ["circle", "Round"]), None),
    ],
)
def test_bbq_knows_groups_by_their_other_names(
    groups: list[str], answers: tuple[list[str], list[str]], biased: int | None, tmp_path: Path
) -> None:
    row = published.bbq_row(0, "neg", True, 2)
    row["additional_metadata"]["stereotyped_groups"] = groups
    row["answer_info"] = {"ans0": answers[0], "ans1": answers[1], "ans2": ["Unknown", "unknown"]}
    published.write_lines(tmp_path / "bbq.jsonl", [row])
    assert read("bbq", tmp_path)[0].facts["biased"] == biased


def test_bbq_takes_the_authors_word_for_the_biased_answer(write: Any) -> None:
    folder = write("bbq")
    rows = [["category", "question_index", "example_id", "target_loc"]]
    rows += [["Shape", "1", "0", "2"], ["Shape", "1", "1", "NA"], ["Shape", "1", "2", "0.0"]]
    (folder / "additional_metadata.csv").write_text(published.csv_text(rows))
    assert [item.facts["biased"] for item in read("bbq", folder)] == [2, None, 0, None]


def test_bbq_may_offer_every_wording_of_unknown(write: Any) -> None:
    items = read("bbq", write("bbq"), "options.every_unknown=true")
    assert items[0].choices[:3] == ("The square one", "The round one", "Unknown")
    assert len(items[0].choices) == 12
    assert items[0].correct == items[0].facts["unknown"] == tuple(range(2, 12))
    assert [item.correct for item in items[2:]] == [(1,), (0,)]
    assert [item.facts["biased"] for item in items] == [0, 1, 0, 1]


def test_crows_pairs_are_sentences_after_nothing(write: Any) -> None:
    benchmark, item, prompt = shown("crows_pairs", write("crows_pairs"))
    assert prompt == ""
    assert choice_texts(benchmark, item) == ["Squares are slow.", "Circles are slow."]
    assert item.type == "shape"


def test_mt_bench_brings_what_its_judge_is_told(write: Any) -> None:
    writing, math = read("mt_bench", write("mt_bench"))
    assert writing.follow_ups == ("Shorter.",)
    assert [prompt.name for prompt in writing.facts["grading"]] == [
        "single-v1", "single-v1-multi-turn",
    ]  # fmt: skip
    assert math.facts["grading"][1] == GradingPrompt(
        "single-math-v1-multi-turn",
        "Be fair.",
        "Grade as [[rating]]. Asked: {question_1} {question_2} Right: {ref_answer_1} "
        "Said: {answer_1} {answer_2}",
    )
    assert math.facts["reference"] == ("4", "8")


def test_mt_bench_answers_are_written_as_fastchat_reads_them(write: Any, tmp_path: Path) -> None:
    items = read("mt_bench", write("mt_bench"))
    answers = [Answer("Four sides!", "", follow_ups=("Four.",)), Answer("4", "", follow_ups=("8",))]
    path = tmp_path / "answers.jsonl"
    mt_bench.write_answers(path, items, answers, "tiny", 12.5)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0]["question_id"] == 81
    assert rows[0]["model_id"] == "tiny"
    assert rows[0]["choices"] == [{"index": 0, "turns": ["Four sides!", "Four."]}]
    assert rows[0]["answer_id"] != rows[1]["answer_id"]
    assert rows[0]["tstamp"] == 12.5
    assert mt_bench.read_answers(path) == {"81": ("Four sides!", "Four."), "111": ("4", "8")}


def test_a_text_may_be_a_file_or_a_folder(write: Any) -> None:
    folder = write("perplexity")
    (one,) = read("perplexity", folder / "one.txt")
    both = read("perplexity", folder)
    assert one == both[1]
    assert [item.type for item in both] == ["more/two.txt", "one.txt"]
    assert both[0].facts == {"words": 5, "bytes": 29}
    # The end of the line parts a last word, which is empty.
    assert one.facts["words"] == 11


def test_wikitext_is_put_apart_and_written_as_people_write(write: Any) -> None:
    square, circle = read("wikitext", write("wikitext"))
    assert square.question.startswith(" = Square =\n\nA square has 4,000 sides (not really).")
    assert "\n== Angles ==\n" in square.question and '"right"' in square.question
    assert circle.question == " = Circle =\n\nThe circle's edge is round.\n"
    # Counted before.
    assert circle.facts["bytes"] == len(" = Circle = \n \n The circle 's edge is round . \n")


def test_wikitext_is_detokenised_as_lm_eval_does() -> None:
    reference = pytest.importorskip("lm_eval.tasks.wikitext.preprocess_wikitext")
    page = (
        ' = It = \n \n The dogs \' house , 4 @.@ 5 m ( 15 ft ) ; a " big " one : 90 \u00b0 N . \n'
        " = = A - B = = \n [ 1 ] { x } ' y ' was 's ! ? \n = = = c = = = \n 3 @-@ 4 @,@ 5"
    )
    assert wikitext.detokenise(page) == reference.wikitext_detokenizer({"page": page})


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "num_items", "num_types"),
    [
        ("mmlu", 14042, 57),
        ("gsm8k", 1319, 1),
        ("humaneval", 164, 1),
        ("truthfulqa", 817, 38),
        ("bbq", 11956, 6),
        ("crows_pairs", 1508, 9),
        ("mt_bench", 80, 8),
        ("wikitext", 62, 1),
    ],
)
def test_the_published_files_are_read_whole(name: str, num_items: int, num_types: int) -> None:
    if not REAL.is_dir():
        pytest.skip("../shared/data/text-benchmarks is not there")
    items = read(name, REAL)
    assert len(items) == num_items
    assert len(Counter(item.type for item in items)) == num_types
    if name == "bbq":
        # Of these six categories every question says which answer is biased.
        assert all(item.facts["biased"] is not None for item in items)
    if name == "mt_bench":
        assert all(len(item.facts["grading"]) == 2 for item in items)
        assert sum(bool(item.facts["reference"]) for item in items) == 30
