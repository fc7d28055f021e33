from collections.abc import Sequence

from eval.baselines import Blind, Majority, Request
from eval.questions import EvalQuestion


def question(text: str) -> EvalQuestion:
    return EvalQuestion("k", text, (b"picture",), "x", ("yes",))


def test_majority_is_the_most_frequent_answer_of_the_type() -> None:
    majority = Majority.of(
        [("count", "2"), ("count", "Two"), ("count", "1"), ("colour", "red"), ("colour", "red")]
    )
    assert majority.answer("count") == "2"
    assert majority.answer("colour") == "red"


def test_majority_of_an_unknown_type_is_the_overall_one() -> None:
    majority = Majority.of([("count", "2"), ("colour", "red"), ("shape", "red")])
    assert majority.answer("relation") == "red"


def test_blind_never_shows_a_picture_and_asks_each_wording_once() -> None:
    requests: list[Request] = []

    def answer(new: Sequence[Request]) -> list[str]:
        requests.extend(new)
        return [f"to {text}" for _, text in new]

    blind = Blind(answer)
    assert blind.predict([question("a?"), question("b?"), question("a?")]) == [
        "to a?",
        "to b?",
        "to a?",
    ]
    assert blind.predict([question("b?")]) == ["to b?"]
    assert requests == [((), "a?"), ((), "b?")]
