"""Our model as lm-eval's, on local task files, beside our own measurements of the same items."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vlm
from eval.benchmark import BenchmarkConfig
from eval.run import evaluate
from eval.scoring import Scored
from vlm import cli
from vlm.errors import UserError

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from eval.harness.lm_eval import HarnessModel

SUBJECT = "shapes"
QUESTIONS = [
    ("How many circles are there?", ["One.", "Two red circles.", "None", "all of them"]),
    ("What colour is the square?", ["blue", "It is red.", "green", "no colour"]),
    ("Is there a triangle?", ["yes", "no", "two", "It is a large one."]),
    ("What is left of it?", ["a circle", "nothing", "square", "the sea"]),
    ("And above?", ["a small one", "B", "circles", "?"]),
    ("<|eot_id|> or not?", ["<|image|>", "not", "or", "both"]),
]
ROWS = [
    {"question": question, "choices": choices, "gold": number % 4, "said": f"{number}"}
    for number, (question, choices) in enumerate(QUESTIONS)
]
TEXTS = ["How many circles are there? " * 3, "Is the sea green?\n\nIt is.\n"]
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same questions for lm-eval, as JSON Lines, and for us, as MMLU's CSV; and two texts."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)
    with (folder / f"{SUBJECT}_test.csv").open("w", newline="") as file:
        for row in ROWS:
            csv.writer(file).writerow([row["question"], *row["choices"], "ABCD"[row["gold"]]])
    return folder


def task(data: Path, output_type: str, **config: Any) -> dict[str, Any]:
    """A task of lm-eval that reads `rows.jsonl`."""
    files = {"data_files": str(data / "rows.jsonl"), "cache_dir": str(data / "cache")}
    return {
        "task": output_type,
        "dataset_path": "json",
        "dataset_kwargs": files,
        "test_split": "train",
        "output_type": output_type,
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_target": "gold",
        **config,
    }


def mean(metric: str) -> dict[str, Any]:
    return {"metric": metric, "aggregation": "mean", "higher_is_better": True}


def choices(data: Path) -> dict[str, Any]:
    metrics = [mean("acc"), mean("acc_norm")]
    return task(data, "multiple_choice", doc_to_choice="choices", metric_list=metrics)


def texts(data: Path) -> dict[str, Any]:
    files = {"data_files": str(data / "texts.jsonl"), "cache_dir": str(data / "cache")}
    names = ("word_perplexity", "byte_perplexity")
    return task(
        data,
        "loglikelihood_rolling",
        dataset_kwargs=files,
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[
            {"metric": name, "aggregation": "weighted_perplexity", "higher_is_better": False}
            for name in names
        ],
    )


def written(data: Path) -> dict[str, Any]:
    settings = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}
    return task(
        data,
        "generate_until",
        doc_to_target="{{said}}",
        generation_kwargs=settings,
        metric_list=[mean("exact_match")],
    )


@pytest.fixture(scope="module")
def harness(model: vlm.Model) -> HarnessModel:
    return HarnessModel(model, batch_size=4)


@pytest.fixture(scope="module")
def run(harness: HarnessModel) -> Run:
    def start(*tasks: dict[str, Any], **settings: Any) -> dict[str, Any]:
        known = TaskManager(include_defaults=False)
        found: dict[str, Any] = simple_evaluate(
            harness, tasks=list(tasks), task_manager=known, bootstrap_iters=0, **settings
        )
        return found

    return start


def ours(model: vlm.Model, data: Path, out: Path, **config: Any) -> Scored:
    """Measure the same with a benchmark of our own."""
    benchmark = BenchmarkConfig.model_validate(
        {
            "name": "same",
            "title": "the same",
            "source": {"homepage": "", "get": ""},
            "chat": False,
            "baselines": [],
            **config,
        }
    )
    return evaluate(model, benchmark, data, out).scored


@pytest.mark.parametrize(("metric", "normalise"), [("acc", "none"), ("acc_norm", "characters")])
def test_accuracy_by_likelihood_is_that_of_our_own_benchmark(
    model: vlm.Model, run: Run, data: Path, tmp_path: Path, metric: str, normalise: str
) -> None:
    theirs = run(choices(data))
    scored = ours(
        model,
        data,
        tmp_path / "report.json",
        format="mmlu",
        files={"questions": "*_test.csv"},
        ask="choose",
        prompt="Q: {question}",
        answer_prefix="\nA:",
        normalise=normalise,
        metrics=["choices"],
    )
    assert theirs["results"]["multiple_choice"][f"{metric},none"] == scored.values()["accuracy"]
    for sample, answer in zip(theirs["samples"]["multiple_choice"], scored.answers, strict=True):
        told = [logprob for ((logprob, _),) in sample["resps"]]
        # The same float32 arithmetic in batches of other sizes.
        assert told == pytest.approx(answer.logprobs, abs=1e-4)


def test_perplexity_of_texts_is_that_of_our_own_benchmark(
    model: vlm.Model, run: Run, data: Path, tmp_path: Path
) -> None:
    theirs = run(texts(data))["results"]["loglikelihood_rolling"]
    scored = ours(
        model,
        data,
        tmp_path / "report.json",
        format="text",
        files={"texts": "*.txt"},
        ask="perplexity",
        metrics=["perplexity"],
    )
    own = scored.values()
    assert theirs["word_perplexity,none"] == pytest.approx(own["word perplexity"], rel=1e-5)
    assert theirs["byte_perplexity,none"] == pytest.approx(own["byte perplexity"], rel=1e-5)


def test_what_is_generated_is_what_the_model_continues_with(
    model: vlm.Model, run: Run, data: Path
) -> None:
    samples = run(written(data))["samples"]["generate_until"]
    prompts = [f"Q: {question}\nA:" for question, _ in QUESTIONS]
    replies = model.complete_batch(prompts, max_tokens=6, stop=["\n"])
    assert [sample["resps"][0][0] for sample in samples] == [reply.text for reply in replies]


def test_with_a_chat_template_the_model_sees_messages_and_words_stay_words(
    model: vlm.Model, run: Run, data: Path
) -> None:
    settings = {"apply_chat_template": True, "num_fewshot": 1, "fewshot_as_multiturn": True}
    one = choices(data) | {"fewshot_split": "train", "fewshot_config": {"sampler": "first_n"}}
    samples = run(one, **settings)["samples"]["multiple_choice"]
    sample = samples[-1]  # its question and first choice look like special tokens
    shown = sample["arguments"][0][0]
    assert shown.count("<|start_header_id|>") == 4 and "Q: <|eot_id|> or not?" in shown
    first, last = ROWS[0], ROWS[-1]
    messages = [
        {"role": "user", "content": f"Q: {first['question']}\nA:"},
        {"role": "assistant", "content": first["choices"][first["gold"]]},
        {"role": "user", "content": f"Q: {last['question']}\nA:"},
    ]
    expected = model.score(messages, last["choices"])
    told = [logprob for ((logprob, _),) in sample["resps"]]
    assert told == pytest.approx([each.logprob for each in expected], abs=1e-4)


def test_a_begun_answer_is_refused_in_a_chat(run: Run, data: Path) -> None:
    with pytest.raises(UserError, match="gen_prefix"):
        run(choices(data) | {"gen_prefix": "The answer is"}, apply_chat_template=True)


def test_pictures_of_a_task_stand_where_it_says(
    model: vlm.Model, harness: HarnessModel, picture: Callable[..., Any]
) -> None:
    question = "<image> or <image>?"
    context = harness.apply_chat_template([{"role": "user", "content": question}])
    pictures = [picture(0), picture(1)]

    def request(number: int, kind: str, *arguments: Any) -> Instance:
        return Instance(kind, {}, (context, *arguments, {"visual": pictures}), number)

    parts = [
        {"type": "image", "image": pictures[0]},
        {"type": "text", "text": " or "},
        {"type": "image", "image": pictures[1]},
        {"type": "text", "text": "?"},
    ]
    messages = [{"role": "user", "content": parts}]
    (text,) = harness.generate_until([request(0, "generate_until", {"max_gen_toks": 4})])
    assert text == model.chat(messages, max_tokens=4).text
    ((logprob, _),) = harness.loglikelihood([request(0, "loglikelihood", "yes")])
    assert logprob == pytest.approx(model.score(messages, ["yes"])[0].logprob, abs=1e-4)
    with pytest.raises(UserError, match="2 times <image> and 1 pictures"):
        del pictures[1]
        harness.generate_until([request(0, "generate_until", {})])


@pytest.mark.slow
def test_lm_evals_command_knows_our_models(
    model_folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "local.yaml").write_text(yaml.safe_dump(choices(data) | {"task": "local"}))
    monkeypatch.setattr("sys.argv", ["vlm"])
    arguments = ["--model", "vlm", "--model_args", f"pretrained={model_folder},device=cpu"]
    where = ["--include_path", str(folder), "--output_path", str(tmp_path / "out")]
    command = ["eval", "lm-eval", *arguments, "--tasks", "local", *where]
    assert cli.main(command) == 0
    (report,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(report.read_text())["results"]
    assert 0 <= results["local"]["acc,none"] <= 1
