"""Judges grade open answers in the benchmark's words, once, and say when they cannot."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from text_benchmarks import write_mt_bench

from eval.benchmark import find_benchmark
from eval.items import MISSING, Answer, Item
from eval.judge import Chat, Grader, ModelJudge, judged_by, open_judge, read_rating
from eval.judge_endpoint import ATTEMPTS, EndpointJudge
from eval.metrics import judged
from vlm.chat.processor import Processor
from vlm.config import VLMConfig
from vlm.errors import UserError
from vlm.model import VisionLanguageModel
from vlm.weights.folder import FORMAT, FolderConfig, save_folder

ANSWERS = [
    Answer("Squares are fair.", "", follow_ups=("Fair squares.",)),
    Answer("4", "", follow_ups=("8 {answer}",)),
]


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    write_mt_bench(tmp_path)
    return list(find_benchmark("mt_bench").items(tmp_path))


class Reader:
    """A judge by a rule: what it says of the words that it is shown."""

    name = "reader"

    def __init__(self, say: Callable[[str], str]) -> None:
        self.say = say
        self.seen: list[Chat] = []

    def write(self, chats: Sequence[Chat]) -> list[str]:
        self.seen += chats
        return [self.say(chat[-1]["content"]) for chat in chats]


@pytest.mark.parametrize(
    ("judgement", "rating"),
    [
        ("Good. Rating: [[8]]", 8),
        ("[[7.5]] rather than [[2]]", 7.5),
        ("Rating: [6]", 6),
        ("I would say [3], no: [[4]]", 4),
        ("Rating: 9", None),
        ("[[11]]", None),
        ("[[0]]", None),
        ("", None),
    ],
)
def test_a_rating_stands_in_brackets(judgement: str, rating: float | None) -> None:
    assert read_rating(judgement) == rating


def test_a_judge_is_told_what_the_benchmark_says(items: list[Item], tmp_path: Path) -> None:
    judge = Reader(lambda words: "[[5]]")
    Grader(judge, tmp_path / "judged.jsonl", "tiny").grade(items, ANSWERS)
    assert [chat[0] for chat in judge.seen] == [{"role": "system", "content": "Be fair."}] * 4
    assert [chat[1]["content"] for chat in judge.seen] == [
        "Grade as [[rating]]. Asked: Praise squares. Said: Squares are fair.",
        "Grade as [[rating]]. Asked: Praise squares. Shorter. "
        "Said: Squares are fair. Fair squares.",
        "Grade as [[rating]]. Asked: What is 2 + 2? Right: 4 Said: 4",
        # What a model says is no template.
        "Grade as [[rating]]. Asked: What is 2 + 2? And twice that? Right: 4 Said: 4 8 {answer}",
    ]


def test_grades_are_measured_by_turn(items: list[Item], tmp_path: Path) -> None:
    grades = iter(["[[8]]", "[[5]]", "well", "[[2]]"])
    judge = Reader(lambda words: next(grades))
    with judged_by(Grader(judge, tmp_path / "judged.jsonl", "tiny")):
        measured = judged.measure(items, ANSWERS)
    assert measured.values() == pytest.approx(
        {"rating": 5, "first turn": 8, "later turns": 3.5, "ungraded": 0.25, "answered": 1}
    )
    assert list(measured.item_scores) == pytest.approx([0.65, 0.2])
    with judged_by(None):
        assert list(judged.measure(items, ANSWERS).values()) == ["answered"]


def test_an_item_without_an_answer_has_the_lowest_grade_unasked(
    items: list[Item], tmp_path: Path
) -> None:
    judge = Reader(lambda words: "[[9]]")
    with judged_by(Grader(judge, tmp_path / "judged.jsonl", "tiny")):
        values = judged.measure(items, [MISSING, ANSWERS[1]]).values()
    assert len(judge.seen) == 2
    assert values["rating"] == 5 and values["answered"] == 0.5


def test_nothing_is_judged_twice(items: list[Item], tmp_path: Path) -> None:
    path = tmp_path / "judged.jsonl"
    first = Reader(lambda words: "[[3]]")
    Grader(first, path, "tiny").grade(items[:1], ANSWERS[:1])
    again = Reader(lambda words: "[[9]]")
    grades = Grader(again, path, "tiny").grade(items, ANSWERS)
    assert grades == [[3, 3], [9, 9]]
    assert len(again.seen) == 2
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["question_id"], row["turn"], row["score"]) for row in rows] == [
        (81, 1, 3), (81, 2, 3), (111, 1, 9), (111, 2, 9),
    ]  # fmt: skip
    assert rows[2]["judge"] == ["reader", "single-math-v1"]
    # Other answers are judged anew.
    other = [Answer("Round.", "", follow_ups=("Round.",)), ANSWERS[1]]
    assert Grader(again, path, "tiny").grade(items, other)[0] == [9, 9]


def test_a_judge_without_words_or_references_says_which_file(tmp_path: Path) -> None:
    write_mt_bench(tmp_path)
    judge = Reader(lambda words: "[[5]]")
    (tmp_path / "gpt-4.jsonl").unlink()
    items = list(find_benchmark("mt_bench").items(tmp_path))
    with pytest.raises(UserError, match=r"needs ref_answer_1 of item '111'.*file of their own"):
        Grader(judge, tmp_path / "judged.jsonl", "tiny").grade(items, ANSWERS)
    (tmp_path / "judge_prompts.jsonl").unlink()
    items = list(find_benchmark("mt_bench").items(tmp_path))
    with pytest.raises(UserError, match="file of judge prompts is missing"):
        Grader(judge, tmp_path / "judged.jsonl", "tiny").grade(items, ANSWERS)


Handler = Callable[[web.Request], Any]


@pytest.fixture
def serve() -> Iterator[Callable[[Handler], str]]:
    """`serve(handler)`: the address of a server on this machine that answers everything so."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    runners: list[web.AppRunner] = []

    def start(handler: Handler) -> str:
        async def listen() -> str:
            application = web.Application()
            application.router.add_route("*", "/{path:.*}", handler)
            runner = web.AppRunner(application)
            runners.append(runner)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            port: int = runner.addresses[0][1]
            return f"http://127.0.0.1:{port}/v1"

        return asyncio.run_coroutine_threadsafe(listen(), loop).result(10)

    yield start
    for runner in runners:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def reply(text: str) -> web.Response:
    return web.json_response({"choices": [{"message": {"role": "assistant", "content": text}}]})


CHATS: list[Chat] = [[{"role": "user", "content": str(number)}] for number in range(20)]


def test_an_endpoint_answers_in_order_through_a_busy_moment(
    serve: Callable[[Handler], str],
) -> None:
    requests: list[tuple[str | None, dict[str, Any]]] = []

    async def handle(request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.json_response({"data": [{"id": "judge-1"}]})
        body = await request.json()
        requests.append((request.headers.get("Authorization"), body))
        if len(requests) == 1:
            return web.Response(status=429, text="busy")
        if len(requests) == 2:
            return web.Response(status=503, text="starting")
        return reply(f"[[{int(body['messages'][0]['content']) % 10}]]")

    judge = EndpointJudge(serve(handle) + "/", None, "secret", wait_s=0.01)
    assert judge.name == "judge-1"
    assert judge.write(CHATS) == [f"[[{number % 10}]]" for number in range(20)]
    assert len(requests) == 22
    assert {header for header, _ in requests} == {"Bearer secret"}
    assert requests[0][1]["model"] == "judge-1" and requests[0][1]["temperature"] == 0


def test_an_endpoint_that_refuses_or_stays_busy_is_named(serve: Callable[[Handler], str]) -> None:
    tried: list[str] = []

    async def refuse(request: web.Request) -> web.Response:
        tried.append(request.path)
        return web.Response(status=401, text="no such key")

    async def busy(request: web.Request) -> web.Response:
        tried.append(request.path)
        return web.Response(status=500, text="oh")

    async def several(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "a"}, {"id": "b"}]})

    address = serve(refuse)
    with pytest.raises(UserError, match=rf"{address}/chat/completions refuses: 401 no such key"):
        EndpointJudge(address, "m", "secret", wait_s=0.01).write(CHATS[:1])
    assert len(tried) == 1
    with pytest.raises(UserError, match=f"did not answer in {ATTEMPTS} attempts: 500 oh"):
        EndpointJudge(serve(busy), "m", None, wait_s=0.01).write(CHATS[:1])
    assert len(tried) == 1 + ATTEMPTS
    with pytest.raises(UserError, match=r"lists 2 models \(a, b\).*--judge-model"):
        EndpointJudge(serve(several), None, None)


def test_a_judge_is_an_address_or_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needed: a model folder, or an http address"):
        open_judge(str(tmp_path / "nothing"), None, {})
    with pytest.raises(UserError, match="is a folder"):
        open_judge(str(tmp_path), "gpt-4", {})
    judge = open_judge("https://example.org/v1/", "gpt-4", {"OPENAI_API_KEY": "k"})
    assert isinstance(judge, EndpointJudge)
    assert judge.name == "gpt-4" and judge.address == "https://example.org/v1"


def test_a_model_folder_is_a_judge(
    tiny_config: VLMConfig,
    tiny_model: VisionLanguageModel,
    processor: Processor,
    items: list[Item],
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    parts = {name: getattr(tiny_model, name) for name in ("encoder", "projector", "decoder")}
    described = FolderConfig(
        format=FORMAT, stage="finetune", components=tuple(parts), model=tiny_config
    )
    save_folder(folder, described, parts, processor, {"stage": "finetune"})
    judge = ModelJudge(folder, max_tokens=4)
    assert judge.name == "model"
    with judged_by(Grader(judge, tmp_path / "judged.jsonl", "tiny")):
        values = judged.measure(items[:1], ANSWERS[:1]).values()
    # It was never trained: what it writes has no grade.
    assert values["ungraded"] == 1 and values["answered"] == 1
