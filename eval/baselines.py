"""What can be answered without looking: the model kept from the pictures, and the usual answer."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from eval.metrics import normalise
from eval.questions import EvalQuestion

Request = tuple[Sequence[bytes], str]
Answerer = Callable[[Sequence[Request]], Sequence[str]]


@dataclass(frozen=True)
class Majority:
    """The most frequent answer of each question type, and of all questions together.

    Counted on the evaluated questions themselves, it is the best that a constant answer for each
    type can do; counted on training shards, what a constant learnt there does.
    """

    by_type: dict[str, str]
    overall: str

    @staticmethod
    def of(questions: Iterable[tuple[str, str]]) -> "Majority":
        """Count (type, usual answer); among equally frequent answers, the first met wins."""
        overall: Counter[str] = Counter()
        by_type: dict[str, Counter[str]] = {}
        for kind, answer in questions:
            overall[normalise(answer)] += 1
            by_type.setdefault(kind, Counter())[normalise(answer)] += 1
        assert overall
        best = {kind: by_type[kind].most_common(1)[0][0] for kind in sorted(by_type)}
        return Majority(best, overall.most_common(1)[0][0])

    def answer(self, kind: str) -> str:
        """The answer to a question of this type; of a type not counted, the overall one."""
        return self.by_type.get(kind, self.overall)


@dataclass(frozen=True)
class Blind:
    """The same model, asked the same questions without their pictures.

    Each wording is asked once: without a picture, equal questions have equal answers.
    """

    answer: Answerer
    known: dict[str, str] = field(default_factory=dict)

    def predict(self, questions: Sequence[EvalQuestion]) -> list[str]:
        """One answer for each question."""
        new = list(dict.fromkeys(q.text for q in questions if q.text not in self.known))
        if new:
            answers = self.answer([((), text) for text in new])
            self.known.update(zip(new, answers, strict=True))
        return [self.known[question.text] for question in questions]
