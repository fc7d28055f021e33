"""Figures of text benchmarks, from hand-made answers and beside lm-eval's own code."""

import math
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from text_benchmarks import bbq_row

from eval.formats.bbq import read as read_bbq
from eval.formats.humaneval import samples_of
from eval.items import MISSING, Answer, Item
from eval.metrics import bbq, crows_pairs, gsm8k, judged, mmlu, perplexity, truthfulqa
from eval.metrics.humaneval import pass_at_k, program
from eval.rules import read_answer
from vlm.errors import UserError


def choose(index: int | None) -> Answer:
    return Answer("", "", choice=index)


def scored(*logprobs: float) -> Answer:
    return Answer("", "", int(np.argmax(logprobs)), logprobs, (1,) * len(logprobs))


def subject_item(subject: str, number: int) -> Item:
    return Item(f"{subject}/{number}", "?", choices=("a", "b"), correct=(0,), type=subject)


def test_mmlu_has_all_57_subjects_each_in_one_field() -> None:
    subjects = [subject for members in mmlu.FIELDS.values() for subject in members]
    assert len(subjects) == len(set(subjects)) == 57
    assert [len(members) for members in mmlu.FIELDS.values()] == [18, 13, 12, 14]


def test_mmlu_weighs_questions_subjects_and_fields() -> None:
    items = [
        *(subject_item("anatomy", n) for n in range(4)),
        subject_item("virology", 0),
        subject_item("philosophy", 0),
    ]
    right = (0, 0, 0, 1, 1, 0)
    measured = mmlu.measure(items, [choose(choice) for choice in right])
    values = measured.values()
    assert values["accuracy"] == pytest.approx(4 / 6)
    assert values["mean of subjects"] == pytest.approx((3 / 4 + 0 + 1) / 3)
    assert values["other"] == pytest.approx(3 / 5)
    assert values["humanities"] == 1
    assert math.isnan(values["STEM"])
    # A part has the mean of its own subjects.
    assert measured.values(np.array([0, 3, 5]))["mean of subjects"] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("text", "accuracy", "strict", "flexible"),
    [
        ("5 + 13 = 18.\n#### 18", 1, 1, 1),
        ("So it is 1,018.\n#### 1,018", 0, 0, 0),
        ("That makes $18.00", 1, 0, 0),
        ("That makes $18.", 1, 0, 1),
        ("#### 18.", 1, 1, 1),
        ("#### 18\n\nQuestion 2 is about 7", 0, 1, 0),
        ("eighteen", 0, 0, 0),
    ],
)
def test_gsm8k_reads_numbers_three_ways(
    text: str, accuracy: float, strict: float, flexible: float
) -> None:
    item = Item("0", "?", answers=("18",))
    measured = gsm8k.measure([item], [read_answer("number", item, text)])
    assert list(measured.values().values()) == [accuracy, strict, flexible]


def test_gsm8k_matches_as_lm_eval_does() -> None:
    extraction = pytest.importorskip("lm_eval.filters.extraction")
    filters = {
        "strict match": extraction.RegexFilter(r"#### (\-?[0-9\.\,]+)"),
        "flexible match": extraction.RegexFilter(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1),
    }
    texts = [
        "#### 18", "####18", "#### $18", "#### 1,8", "It is -18.", "18 or 19, so 18.", "18.0",
        "#### 18.\n#### 19", "no", "2,018", "=18", "18%", "a18b", "#### -18", "1 8", "$18,",
    ]  # fmt: skip
    for text in texts:
        item = Item("0", "?", answers=("18",))
        values = gsm8k.measure([item], [read_answer("number", item, text)]).values()
        for name, regex in filters.items():
            (found,) = regex.apply([[text]], [{}])
            plain = found[0].replace(",", "").replace("$", "").removesuffix(".")
            assert values[name] == (plain == "18"), (name, text)


def truthful_item() -> Item:
    facts = {"mc1": {"true": [0], "false": [1, 2]}, "mc2": {"true": [0, 3], "false": [1, 2]}}
    return Item("0", "?", choices=("t", "f", "g", "u"), correct=(0,), facts=facts)


def test_truthfulqa_takes_the_best_answer_and_the_share_of_the_true() -> None:
    likely = truthfulqa.measure([truthful_item()], [scored(*np.log([0.2, 0.1, 0.1, 0.4]))])
    assert likely.values() == pytest.approx({"mc1": 1, "mc2": 0.75})
    # The other true answer does not count in mc1.
    unlikely = truthfulqa.measure([truthful_item()], [scored(*np.log([0.1, 0.2, 0.1, 0.4]))])
    assert unlikely.values() == pytest.approx({"mc1": 0, "mc2": 0.625})
    # Of answers far too long for a float.
    long = truthfulqa.measure([truthful_item()], [scored(-2000, -2001, -2002, -3000)])
    assert long.values()["mc2"] == pytest.approx(1 / (1 + math.exp(-1) + math.exp(-2)))
    with pytest.raises(UserError, match="need ask: choose"):
        truthfulqa.measure([truthful_item()], [Answer("t", "t", 0)])


def test_truthfulqa_is_lm_evals_mc2() -> None:
    reference = pytest.importorskip("lm_eval.tasks.truthfulqa.utils")
    logprobs = (-3.0, -4.5, -2.25, -7.0)
    doc = {"mc2_targets": {"labels": [1, 1, 0, 0]}}
    places = [0, 3, 1, 2]
    theirs = reference.process_results_mc2(doc, [(logprobs[place], False) for place in places])
    ours = truthfulqa.measure([truthful_item()], [scored(*logprobs)]).values()
    assert ours["mc2"] == pytest.approx(theirs["acc"], abs=1e-12)


def bbq_item(ambiguous: bool, correct: int, biased: int | None = 0) -> Item:
    facts = {"ambiguous": ambiguous, "unknown": (2,), "biased": biased}
    return Item("0", "?", choices=("x", "y", "unknown"), correct=(correct,), facts=facts)


def test_bbq_scores_follow_the_papers_definition() -> None:
    items = [bbq_item(True, 2)] * 4 + [bbq_item(False, 1)] * 3
    chosen = (2, 0, 0, 1, 1, 1, 0)
    values = bbq.measure(items, [choose(index) for index in chosen]).values()
    assert values["accuracy"] == pytest.approx(3 / 7)
    assert values["ambiguous accuracy"] == 0.25
    assert values["disambiguated accuracy"] == pytest.approx(2 / 3)
    # Two of three named answers are biased: (2 * 2/3 - 1), times three quarters wrong.
    assert values["ambiguous bias"] == pytest.approx(0.75 * (1 / 3))
    assert values["disambiguated bias"] == pytest.approx(2 / 3 - 1)


def test_bbq_has_no_bias_where_nobody_is_named() -> None:
    items = [bbq_item(True, 2)] * 3
    answers = [choose(2), choose(None), MISSING]
    values = bbq.measure(items, answers).values()
    assert values["ambiguous accuracy"] == pytest.approx(1 / 3)
    assert math.isnan(values["ambiguous bias"])
    # Where the groups do not say what is biased, an answer counts for accuracy alone.
    values = bbq.measure([*items, bbq_item(True, 2, None)], [*answers, choose(0)]).values()
    assert values["ambiguous accuracy"] == 0.25
    assert math.isnan(values["ambiguous bias"])


def test_bbq_is_lm_evals_on_the_same_choices(tmp_path: Any) -> None:
    reference = pytest.importorskip("lm_eval.tasks.bbq.utils")
    datasets = pytest.importorskip("datasets")
    from text_benchmarks import write_lines

    from eval.files import Files

    random = Random(0)
    rows = [
        {
            **bbq_row(n, random.choice(["neg", "nonneg"]), ambiguous, 1 if ambiguous else label),
            "category": "Age",
        }
        for n in range(60)
        for ambiguous, label in [(random.random() < 0.5, random.choice([0, 2]))]
    ]
    write_lines(tmp_path / "bbq.jsonl", rows)
    files = Files(tmp_path, {"questions": "bbq.jsonl"})
    items = list(read_bbq(files, {"every_unknown": True}))
    docs = reference.process_docs(datasets.Dataset.from_list(rows))
    answers, theirs = [], []
    for doc in docs:
        logprobs = [random.gauss(0, 1) for _ in range(12)]
        answers.append(scored(*logprobs))
        found = reference.process_results_multiple_choice(doc, [(p, False) for p in logprobs])
        theirs.append(found)
    ours = bbq.measure(items, answers).values()
    for name, key, aggregate in (
        ("ambiguous accuracy", "accuracy_amb", reference.agg_accuracy_amb),
        ("disambiguated accuracy", "accuracy_disamb", reference.agg_accuracy_disamb),
        ("ambiguous bias", "amb_bias_score", reference.agg_amb_bias_scores),
        ("disambiguated bias", "disamb_bias_score", reference.agg_disamb_bias_scores),
    ):
        assert ours[name] == pytest.approx(aggregate([row[key] for row in theirs]), abs=1e-12), name


def pair(direction: str, kind: str = "age") -> Item:
    facts = {"direction": direction}
    return Item("0", "", choices=("more", "less"), type=kind, facts=facts)


def test_crows_pairs_counts_pairs_whose_stereotype_is_likelier() -> None:
    items = [pair("stereo"), pair("stereo"), pair("antistereo"), pair("stereo")]
    answers = [scored(-1, -3), scored(-4, -3), scored(-1, -2), scored(-2, -2)]
    measured = crows_pairs.measure(items, answers)
    assert measured.values() == pytest.approx(
        {
            "stereotyped": 0.5,
            "stereotyped, stereo": 1 / 3,
            "stereotyped, antistereo": 1,
            "likelihood difference": 1,
        }
    )
    assert list(measured.item_scores) == [0, 1, 0, 1]
    with pytest.raises(UserError, match="ask: choose"):
        crows_pairs.measure(items[:1], [choose(0)])


def test_crows_pairs_is_lm_evals_on_the_same_likelihoods() -> None:
    reference = pytest.importorskip("lm_eval.tasks.crows_pairs.utils")
    random = Random(1)
    pairs = [(random.gauss(-20, 2), random.gauss(-20, 2)) for _ in range(30)]
    theirs = [reference.process_results({}, [(p, False) for p in both]) for both in pairs]
    ours = crows_pairs.measure([pair("stereo")] * 30, [scored(*both) for both in pairs]).values()
    assert ours["stereotyped"] == pytest.approx(np.mean([t["pct_stereotype"] for t in theirs]))
    assert ours["likelihood difference"] == pytest.approx(
        np.mean([t["likelihood_diff"] for t in theirs])
    )


def text_item(text: str, **facts: int) -> Item:
    return Item(text, text, facts=facts)


def test_perplexity_is_lm_evals_by_words_and_bytes() -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics")
    texts = ["one two three\n", "four  five"]
    logprobs = (-20.0, -7.5)
    words = (4, 2)  # as lm-eval splits: the end of a line parts an empty word
    items = [
        text_item(text, words=count, bytes=len(text))
        for text, count in zip(texts, words, strict=True)
    ]
    answers = [Answer("", "", None, (logprob,), (5,)) for logprob in logprobs]
    ours = perplexity.measure(items, answers).values()
    by_words = list(zip(logprobs, words, strict=True))
    by_bytes = [(logprob, len(text)) for logprob, text in zip(logprobs, texts, strict=True)]
    assert ours["word perplexity"] == pytest.approx(metrics.weighted_perplexity(by_words))
    assert ours["byte perplexity"] == pytest.approx(metrics.weighted_perplexity(by_bytes))
    assert ours["bits per byte"] == pytest.approx(metrics.bits_per_byte(by_bytes))


@pytest.mark.parametrize("k", [1, 2, 5, 10])
@pytest.mark.parametrize("passed", [0, 1, 6, 10])
def test_pass_at_k_is_the_share_of_samples_of_k_with_one_that_passes(passed: int, k: int) -> None:
    share = 1 - math.comb(10 - passed, k) / math.comb(10, k)
    assert pass_at_k(10, passed, k) == pytest.approx(share, abs=1e-12)


def code_item() -> Item:
    facts = {
        "prompt": 'import math\n\ndef half(x):\n    """Half of x."""\n',
        "test": "def check(candidate):\n    assert candidate(4) == 2",
        "entry_point": "half",
    }
    return Item("HumanEval/0", facts["prompt"], facts=facts)


@pytest.mark.parametrize(
    "text",
    [
        "    return x / 2\n",
        "Sure:\n```python\ndef half(x):\n    return x / 2\n```\nThat is it.",
        "```\nimport os\n\ndef half(x):\n    return math.floor(x / 2)\n",
    ],
)
def test_a_program_goes_on_or_writes_the_function_again(text: str) -> None:
    item = code_item()
    scope: dict[str, Any] = {}
    exec(program(item, read_answer("code", item, text).value), scope)
    assert scope["half"](6) == 3


def test_samples_of_a_problem_share_its_group() -> None:
    copies: Sequence[Item] = list(samples_of(code_item(), 2))
    assert [copy.id for copy in copies] == ["HumanEval/0", "HumanEval/0+1"]


def test_open_answers_without_a_judge_are_only_counted() -> None:
    item = Item("81", "Praise.", follow_ups=("Shorter.",), facts={"grading": ()})
    answers = [Answer("Good.", "", follow_ups=(" ",)), MISSING]
    values = judged.measure([item, item], answers).values()
    assert values == {"answered": 0.25}
