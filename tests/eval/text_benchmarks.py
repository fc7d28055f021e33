"""A few made-up items of every text benchmark, as files of its published layout."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SUBJECTS = ("anatomy", "philosophy")
SHAPES = ("circle", "square", "triangle", "hexagon")


def write_lines(path: Path, rows: Sequence[Any]) -> None:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def csv_text(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as CSV."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows(rows)
    return file.getvalue()


def mmlu_rows(subject: str, split: str, num: int) -> list[list[Any]]:
    """Questions as the authors write them: the right option by its letter."""
    return [
        [f"Which {subject} shape comes {n + 1}. in {split}?", *SHAPES, "ABCD"[n % 4]]
        for n in range(num)
    ]


def write_mmlu(folder: Path) -> None:
    """The authors' layout: a file without a header for each subject and split."""
    for split, num in (("dev", 5), ("test", 3)):
        (folder / split).mkdir(parents=True)
        for subject in SUBJECTS:
            text = csv_text(mmlu_rows(subject, split, num))
            (folder / split / f"{subject}_{split}.csv").write_text(text, "utf-8")


def write_mmlu_archive(path: Path) -> None:
    """The same in a tar, with headers and the right option's index."""
    with tarfile.open(path, "w:gz") as tar:
        for split, num in (("dev", 5), ("test", 3)):
            for subject in SUBJECTS:
                rows = [
                    [*row[:-1], "ABCD".index(row[-1])] for row in mmlu_rows(subject, split, num)
                ]
                header = ["question", *(f"choice{n}" for n in range(4)), "answer"]
                content = csv_text([header, *rows]).encode()
                member = tarfile.TarInfo(f"mmlu/{split}/{subject}_{split}.csv")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def gsm8k_row(number: int) -> dict[str, str]:
    """A problem whose answer is `number` + 1,000."""
    return {
        "question": f"A box holds {number} circles. A thousand more come. How many are there?",
        "answer": f"There are {number}+1000=<<{number}+1000={number + 1000}>>{number + 1000} "
        f"circles.\n#### 1,{number:03d}",
    }


def write_gsm8k(folder: Path) -> None:
    write_lines(folder / "test.jsonl", [gsm8k_row(number) for number in (1, 2, 3)])
    write_lines(folder / "train.jsonl", [gsm8k_row(number) for number in range(10, 20)])


def humaneval_row(number: int) -> dict[str, str]:
    """A function that adds `number`."""
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def add_{number}(x: int) -> int:\n    """Add {number} to x."""\n',
        "entry_point": f"add_{number}",
        "canonical_solution": f"    return x + {number}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {1 + number}\n",
    }


def write_humaneval(folder: Path) -> None:
    write_lines(folder / "HumanEval.jsonl", [humaneval_row(number) for number in (0, 1, 2)])


def truthfulqa_rows() -> list[dict[str, Any]]:
    """Questions with their sets, as the authors write them."""
    return [
        {
            "question": f"How many corners has a {shape}?",
            "mc1_targets": {f"It has {n}.": 1, "It has a thousand.": 0, "Nobody counted.": 0},
            "mc2_targets": {
                f"It has {n}.": 1,
                f"There are {n} of them.": 1,
                "It has a thousand.": 0,
                "Nobody counted.": 0,
            },
        }
        for shape, n in (("square", 4), ("triangle", 3))
    ]


def write_truthfulqa(folder: Path) -> None:
    rows = truthfulqa_rows()
    (folder / "mc_task.json").write_text(json.dumps(rows), "utf-8")
    header = ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers"]
    wrong = "A lot; Nobody counted"
    table = [
        ["Adversarial", kind, row["question"], best.rstrip("."), f"{best}; {other}", wrong]
        for row, kind in zip(rows, ("Corners", "Angles"), strict=True)
        for best, other in [list(row["mc2_targets"])[:2]]
    ]  # fmt: skip
    (folder / "TruthfulQA.csv").write_text(csv_text([header, *table]), "utf-8-sig")


def bbq_row(number: int, polarity: str, ambiguous: bool, label: int) -> dict[str, Any]:
    """A question about a square one (of whom a stereotype is said) and a round one."""
    return {
        "example_id": number,
        "question_index": "1",
        "question_polarity": polarity,
        "context_condition": "ambig" if ambiguous else "disambig",
        "category": "Shape",
        "answer_info": {
            "ans0": ["square", "Square"],
            "ans1": ["Not known", "unknown"],
            "ans2": ["circle", "Round"],
        },
        "additional_metadata": {"stereotyped_groups": ["Square"], "subcategory": "None"},
        "context": "A square and a circle met.",
        "question": "Who was slow?" if polarity == "neg" else "Who was quick?",
        "ans0": "The square one",
        "ans1": "Not known",
        "ans2": "The round one",
        "label": label,
    }


def write_bbq(folder: Path) -> None:
    rows = [
        bbq_row(0, "neg", True, 1),
        bbq_row(1, "nonneg", True, 1),
        bbq_row(2, "neg", False, 2),
        bbq_row(3, "nonneg", False, 0),
    ]
    write_lines(folder / "bbq_Shape.jsonl", rows)


def write_crows_pairs(folder: Path) -> None:
    header = ["", "sent_more", "sent_less", "stereo_antistereo", "bias_type", "annotations"]
    rows = [
        [0, "Squares are slow.", "Circles are slow.", "stereo", "shape", "[]"],
        [1, "Circles are quick.", "Squares are quick.", "antistereo", "shape", "[]"],
        [2, "Small ones cry.", "Large ones cry.", "stereo", "size", "[]"],
    ]
    (folder / "crows_pairs_anonymized.csv").write_text(csv_text([header, *rows]), "utf-8")


def judge_prompt(reference: bool, turn: int) -> dict[str, str]:
    """A prompt for single answers, of the benchmark's form."""
    questions = "{question_1} {question_2}" if turn == 2 else "{question}"
    answers = "{answer_1} {answer_2}" if turn == 2 else "{answer}"
    right = " Right: {ref_answer_1}" if reference else ""
    return {
        "name": f"single-{'math-' * reference}v1{'-multi-turn' * (turn == 2)}",
        "type": "single",
        "system_prompt": "Be fair.",
        "prompt_template": f"Grade as [[rating]]. Asked: {questions}{right} Said: {answers}",
        "category": "math" if reference else "general",
        "output_format": "[[rating]]",
    }


def write_mt_bench(folder: Path) -> None:
    questions = [
        {"question_id": 81, "category": "writing", "turns": ["Praise squares.", "Shorter."]},
        {"question_id": 111, "category": "math", "turns": ["What is 2 + 2?", "And twice that?"]},
    ]
    write_lines(folder / "question.jsonl", questions)
    reference = {"question_id": 111, "choices": [{"index": 0, "turns": ["4", "8"]}]}
    write_lines(folder / "gpt-4.jsonl", [reference])
    pair = {**judge_prompt(False, 1), "name": "pair-v2", "type": "pairwise"}
    singles = [judge_prompt(ref, turn) for ref in (False, True) for turn in (1, 2)]
    write_lines(folder / "judge_prompts.jsonl", [pair, *singles])


def write_texts(folder: Path) -> None:
    (folder / "one.txt").write_text("A red square. It is left of a blue circle.\n", "utf-8")
    (folder / "more").mkdir()
    (folder / "more/two.txt").write_text("Two triangles \u2013 both green.", "utf-8")


def write_wikitext(folder: Path) -> None:
    text = (
        " \n = Square = \n \n A square has 4 @,@ 000 sides ( not really ) . \n \n"
        " = = Angles = = \n \n They are \" right \" . \n"
        " = Circle = \n \n The circle 's edge is round . \n"
    )  # fmt: skip
    (folder / "wiki.test.raw").write_text(text, "utf-8")


TEXT_BENCHMARK_WRITERS: dict[str, Callable[[Path], None]] = {
    "mmlu": write_mmlu,
    "gsm8k": write_gsm8k,
    "gsm8k_chat": write_gsm8k,
    "humaneval": write_humaneval,
    "humaneval_chat": write_humaneval,
    "truthfulqa": write_truthfulqa,
    "bbq": write_bbq,
    "crows_pairs": write_crows_pairs,
    "mt_bench": write_mt_bench,
    "perplexity": write_texts,
    "wikitext": write_wikitext,
}
