"""A model's answers to questions, with and without their pictures."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from eval.baselines import Answerer, Blind
from eval.metrics import score
from eval.questions import EvalQuestion


class Prediction(BaseModel):
    """One line of a predictions file.

    answer: the usual one; `answers` are all that count.
    correct, blind_correct: 0..1, see `eval.metrics.score`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    question: str
    type: str
    answer: str
    answers: tuple[str, ...]
    prediction: str
    correct: float
    blind_prediction: str
    blind_correct: float


def predict(
    questions: Iterable[EvalQuestion], answer: Answerer, chunk_questions: int
) -> Iterator[Prediction]:
    """Yield a prediction for each question, in order.

    `answer` gets up to `chunk_questions` (pictures, question) requests at a time: as many as are
    decoded at once, and enough for it to batch questions of like length.
    """
    blind = Blind(answer)
    remaining = iter(questions)
    while chunk := list(islice(remaining, chunk_questions)):
        seen = answer([(question.images, question.text) for question in chunk])
        unseen = blind.predict(chunk)
        for question, prediction, guess in zip(chunk, seen, unseen, strict=True):
            yield Prediction(
                key=question.key,
                question=question.text,
                type=question.type,
                answer=question.usual_answer,
                answers=question.answers,
                prediction=prediction,
                correct=score(prediction, question.answers),
                blind_prediction=guess,
                blind_correct=score(guess, question.answers),
            )


def score_answers(
    questions: Iterable[EvalQuestion], answer: Answerer, chunk_questions: int
) -> Iterator[tuple[str, float]]:
    """Yield type and score, 0..1, of each question, in order: as `predict`, with pictures only."""
    remaining = iter(questions)
    while chunk := list(islice(remaining, chunk_questions)):
        answers = answer([(question.images, question.text) for question in chunk])
        for question, prediction in zip(chunk, answers, strict=True):
            yield question.type, score(prediction, question.answers)


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write predictions as JSONL."""
    with path.open("w", encoding="utf-8") as file:
        for prediction in predictions:
            file.write(prediction.model_dump_json() + "\n")


def read_predictions(path: Path) -> list[Prediction]:
    """Read what `write_predictions` wrote."""
    lines = path.read_text("utf-8").splitlines()
    return [Prediction.model_validate_json(line) for line in lines]
