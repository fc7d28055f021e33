"""A model's predictions for the items of a benchmark, in batches."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from eval.attacks import attack_items, keep_pictures
from eval.benchmark import BenchmarkConfig
from eval.fitting import Fitting, Prompt
from eval.items import Item
from eval.predictions import Prediction
from eval.prompts import (
    Examples,
    Pictures,
    choice_texts,
    conversation,
    raw_prompt,
    shows_pictures,
)
from vlm.api import Model

# Batches whose pictures are decoded together: more sort better by length, fewer take less memory.
CHUNK_BATCHES = 4
# Attacked pictures that are kept.
NUM_KEPT = 64


@dataclass(frozen=True)
class Predictor:
    """Asks a model the items of a benchmark.

    Greedy, so that answers depend neither on the batch size nor on what was asked before; of
    likelihoods the last bits do.
    Prompts that are too long are cut, and answers too, to half of the model's positions.

    blind: no picture is shown, of items and of examples.
    keep: the folder in which some attacked pictures are left to be looked at.
    """

    model: Model
    benchmark: BenchmarkConfig
    examples: Examples
    batch_size: int
    blind: bool = False
    keep: Path | None = None

    @property
    def fitting(self) -> Fitting:
        """What makes prompts fit into the model."""
        positions = self.model.network.decoder.config.max_positions
        return Fitting(self.model.processor, positions)

    @property
    def max_answer_tokens(self) -> int:
        """Where a written answer is cut off."""
        return min(self.benchmark.decoding.max_tokens, self.fitting.max_tokens // 2)

    def predict(self, items: Sequence[Item]) -> list[Prediction]:
        """Return a prediction for each item, in order; equal prompts without pictures run once.

        If the benchmark attacks, the items' pictures are attacked first.
        """
        if self.benchmark.attack is None or self.blind:
            return self._predict(items)
        outcomes = attack_items(self.model, self.benchmark, items, self.batch_size)
        if self.keep is not None:
            keep_pictures(outcomes, self.keep, NUM_KEPT)
        shown = [
            item if outcome is None else outcome.item
            for item, outcome in zip(items, outcomes, strict=True)
        ]
        return [
            prediction.model_copy(update={"attack": None if outcome is None else outcome.facts})
            for prediction, outcome in zip(self._predict(shown), outcomes, strict=True)
        ]

    def _predict(self, items: Sequence[Item]) -> list[Prediction]:
        pictures = Pictures()
        prompts = [self.prompt(item, pictures) for item in items]
        first: dict[str, int] = {}
        same_as = []
        for index, (item, (prompt, _)) in enumerate(zip(items, prompts, strict=True)):
            key = f"{index}" if shows_pictures(prompt) else _key(item, prompt)
            same_as.append(first.setdefault(key, index))
        asked = sorted(set(same_as))
        told = self._ask([items[i] for i in asked], [prompts[i][0] for i in asked])
        found = dict(zip(asked, told, strict=True))
        return [
            found[same].model_copy(
                update={
                    "id": item.id,
                    "images": self._shown(item, pictures),
                    "cut": cut or found[same].cut,
                }
            )
            for item, same, (_, cut) in zip(items, same_as, prompts, strict=True)
        ]

    def prompt(self, item: Item, pictures: Pictures) -> tuple[Prompt, bool]:
        """What the model is shown for an item, and whether it was cut to fit."""
        examples = self.examples.of(item)
        if self.blind:
            item, examples = item.blind(), [example.blind() for example in examples]
        prompt: Prompt
        if self.benchmark.chat:
            prompt = conversation(self.benchmark, item, examples, pictures)
        else:
            prompt = raw_prompt(self.benchmark, item, examples)
        match self.benchmark.ask:
            case "generate":
                return self.fitting.fit(prompt, self.max_answer_tokens)
            case "choose":
                choices = choice_texts(self.benchmark, item)
                return self.fitting.fit(prompt, self.fitting.num_answer_tokens(choices))
            case _:
                return prompt, False  # read in windows

    def _shown(self, item: Item, pictures: Pictures) -> tuple[str, ...]:
        if self.blind:
            return ()
        return tuple(sha256(pictures.read(picture)).hexdigest() for picture in item.images)

    def _ask(self, items: Sequence[Item], prompts: Sequence[Prompt]) -> list[Prediction]:
        match self.benchmark.ask:
            case "generate":
                return self._generate(items, prompts)
            case "choose":
                return self._choose(items, prompts)
            case "perplexity":
                return self._perplexity(items)
            case _:
                raise ValueError(f"{self.benchmark.ask} asks no model of a chat")

    def _generate(self, items: Sequence[Item], prompts: Sequence[Prompt]) -> list[Prediction]:
        answers = [[text] for text in self._write(prompts)]
        cut = [False] * len(items)
        chats: list[Any] = list(prompts)
        for turn in range(max((len(item.follow_ups) for item in items), default=0)):
            going_on = [i for i, item in enumerate(items) if len(item.follow_ups) > turn]
            for i in going_on:
                chat = [
                    *chats[i],
                    {"role": "assistant", "content": answers[i][-1]},
                    {"role": "user", "content": items[i].follow_ups[turn]},
                ]
                chats[i], shortened = self.fitting.fit(chat, self.max_answer_tokens)
                cut[i] |= shortened
            for i, text in zip(going_on, self._write([chats[i] for i in going_on]), strict=True):
                answers[i].append(text)
        return [
            Prediction(id=item.id, text=first, follow_ups=tuple(later), cut=shortened)
            for item, (first, *later), shortened in zip(items, answers, cut, strict=True)
        ]

    def _write(self, prompts: Sequence[Prompt]) -> list[str]:
        settings = {
            "max_tokens": self.max_answer_tokens,
            "stop": self.benchmark.decoding.stop,
        }
        if self.benchmark.chat:
            chats = [prompt for prompt in prompts if not isinstance(prompt, str)]
            replies = self.model.chat_batch(chats, self.batch_size, **settings)
        else:
            texts = [prompt for prompt in prompts if isinstance(prompt, str)]
            replies = self.model.complete_batch(texts, self.batch_size, **settings)
        return [reply.text for reply in replies]

    def _choose(self, items: Sequence[Item], prompts: Sequence[Prompt]) -> list[Prediction]:
        requests = [
            (prompt, choice_texts(self.benchmark, item))
            for item, prompt in zip(items, prompts, strict=True)
        ]
        scored = self.model.score_batch(requests, self.batch_size)
        return [
            Prediction(
                id=item.id,
                logprobs=tuple(choice.logprob for choice in choices),
                num_tokens=tuple(choice.num_tokens for choice in choices),
            )
            for item, choices in zip(items, scored, strict=True)
        ]

    def _perplexity(self, items: Sequence[Item]) -> list[Prediction]:
        scored = self.model.score_texts([item.question for item in items], self.batch_size)
        return [
            Prediction(id=item.id, logprobs=(text.logprob,), num_tokens=(text.num_tokens,))
            for item, text in zip(items, scored, strict=True)
        ]


def in_chunks(items: Iterator[Item], batch_size: int) -> Iterator[list[Item]]:
    """Items a few batches at a time, as they are read, so that few pictures are in memory."""
    chunk: list[Item] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == CHUNK_BATCHES * batch_size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _key(item: Item, prompt: Prompt) -> str:
    return json.dumps([prompt, item.choices, item.follow_ups, item.question])
