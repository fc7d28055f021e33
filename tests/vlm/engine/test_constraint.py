"""Constraints on some of the answers that an engine writes at the same time."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from vlm.chat.processor import Processor
from vlm.engine.constraint import ConstraintError
from vlm.engine.engine import Engine, EngineConfig
from vlm.engine.request import Event, Request
from vlm.engine.sampling import SamplingConfig
from vlm.model import VisionLanguageModel

END = 7
NUM_NEW = 6


@dataclass
class Turns:
    """Allows sets of tokens in turn, the last of them for ever; then, or at once, it fails."""

    sets: tuple[tuple[int, ...], ...]
    fails_at: int | None = None
    given: list[int] = field(default_factory=list)

    def start(self) -> "Turns":
        return Turns(self.sets, self.fails_at)

    def allowed(self) -> Tensor:
        if len(self.given) == self.fails_at:
            raise ConstraintError("lost the thread")
        mask = torch.zeros(60, dtype=torch.bool)  # shorter than the vocabulary
        mask[list(self.sets[min(len(self.given), len(self.sets) - 1)])] = True
        return mask

    def advance(self, token: int) -> None:
        self.given.append(token)


def answers(
    model: VisionLanguageModel,
    processor: Processor,
    grammars: list[Turns | None],
    sampling: SamplingConfig | None = None,
) -> list[list[Event]]:
    """What became of a question asked once for each grammar, all at the same time."""
    prompt = processor.encode([{"role": "user", "content": "How many?"}], (), True)
    engine = Engine(model, [END], [5], EngineConfig(slots=len(grammars), max_tokens=128))
    for grammar in grammars:
        engine.submit(Request(prompt, sampling or SamplingConfig(), NUM_NEW, grammar=grammar))
    told: list[list[Event]] = [[] for _ in grammars]
    while engine.num_active or engine.num_waiting:
        for event in engine.step():
            told[event.request_id].append(event)
    return told


def tokens(events: list[Event]) -> list[int | None]:
    return [event.token for event in events]


def test_only_allowed_tokens_are_written_and_other_answers_stay_the_same(
    open_model: VisionLanguageModel, processor: Processor
) -> None:
    (alone,) = answers(open_model, processor, [None])
    free, bound, ended = answers(
        open_model,
        processor,
        [None, Turns(((11, 12, 13),)), Turns(((21,), (22, 5), (END,)))],
    )
    assert tokens(free) == tokens(alone)
    assert set(tokens(bound)) <= {11, 12, 13} and bound[-1].finish_reason == "length"
    assert tokens(ended) == [21, 22, END] and ended[-1].finish_reason == "stop"


def test_drawn_tokens_are_allowed_ones_and_their_log_probabilities_are_the_networks(
    open_model: VisionLanguageModel, processor: Processor
) -> None:
    sampling = SamplingConfig(
        temperature=1.5,
        top_k=4,
        repetition_penalty=1.3,
        seed=1,
        logprobs=True,
        top_logprobs=2,
    )
    allowed = (11, 12, 13, 14, 15, 16)
    bound, free = answers(open_model, processor, [Turns((allowed,)), None], sampling)
    assert set(tokens(bound)) <= set(allowed) and len(set(tokens(bound))) > 1
    # The likeliest tokens of the first step are told as if there were no constraint.
    told = dict(bound[0].top_logprobs)
    assert told == pytest.approx(dict(free[0].top_logprobs)) and not set(told) & set(allowed)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Turns(((11,),), fails_at=0), "lost the thread"),
        (Turns(((11,),), fails_at=2), "lost the thread"),
        (Turns(((11,), (5,))), "no token that the network can write"),
    ],
)
def test_a_constraint_that_fails_ends_its_own_answer_only(
    open_model: VisionLanguageModel, processor: Processor, grammar: Turns, reason: str
) -> None:
    (alone,) = answers(open_model, processor, [None])
    failed, free = answers(open_model, processor, [grammar, None])
    assert failed[-1].finish_reason == "error" and reason in str(failed[-1].error)
    assert tokens(free) == tokens(alone)
