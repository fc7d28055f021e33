"""Measuring a model while it learns: losses of each source, and answers to questions."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from data.loader import Loader
from data.pack import Manifest
from data.shards import ShardSet
from eval.benchmark import find_benchmark
from eval.items import Item
from eval.predict import Predictor, in_chunks
from eval.prompts import Examples
from eval.scoring import read_answers, score
from training.config import EvaluateConfig
from training.distributed import in_step, num_ranks, rank
from training.objectives import Objective
from vlm.api import Model
from vlm.errors import UserError

# Figures of a step by split (`validation`, `validation/SOURCE`, `evaluation`), then by name.
Figures = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Validation:
    """The validation set as a whole, and its sources one by one where there are several.

    Args:
        sources: by name; read from their beginning each time.
        max_batches: of each, over all ranks; None takes all.
    """

    together: Loader[Any, Any]
    sources: Mapping[str, Loader[Any, Any]]
    max_batches: int | None

    @staticmethod
    def open(
        locations: Sequence[str],
        make: Callable[[list[ShardSet]], Loader[Any, Any]],
        max_batches: int | None,
        features: bool = False,
    ) -> "Validation":
        """Open folders of shards; `make` puts a loader on some of them.

        Args:
            features: they may hold features in place of pictures.
        """
        sets = [ShardSet.open(location, features=features) for location in locations]
        names = source_names(locations) if len(sets) > 1 else []
        sources = {name: make([source]) for name, source in zip(names, sets, strict=False)}
        return Validation(make(sets), sources, max_batches)

    def figures(self, objective: Objective[Any], device: torch.device) -> Figures:
        """The objective's figures over the batches of all ranks; `device` has the model."""
        loaders = {"validation": self.together}
        loaders |= {f"validation/{name}": loader for name, loader in self.sources.items()}
        found: Figures = {}
        for split, loader in loaders.items():
            batches = in_step(self._own_batches(loader), objective.idle, device)
            found[split] = objective.validate(batch.to(device) for batch in batches)
        return found

    def _own_batches(self, loader: Loader[Any, Any]) -> Iterable[Any]:
        """This rank's share, the same batches each time."""
        limit = self.max_batches
        if limit is not None:
            limit = len(range(rank(), limit, num_ranks()))
        return islice(loader.one_epoch(), limit)


class Questions:
    """Questions to a model that learns; they are read once, and kept encoded.

    Raises:
        UserError: the folder holds no questions.
    """

    def __init__(self, model: Model, config: EvaluateConfig) -> None:
        Manifest.read(config.data)  # says what a wrong path is
        self.model, self.config = model, config
        decoding = f"decoding.max_tokens={config.max_tokens}"
        self.benchmark = find_benchmark("shards", (decoding,))
        self.items: list[Item] = list(
            islice(self.benchmark.items(config.data), config.max_questions)
        )
        if not self.items:
            raise UserError(
                f"evaluate.data {config.data} holds no question; captions are not asked"
            )
        self.examples = Examples(self.benchmark, ())

    def figures(self) -> Figures:
        """`evaluation`: accuracy over all questions, and `accuracy/TYPE` of each type, 0..1."""
        # What a model keeps of pictures and chats belongs to the weights of that time.
        model = Model(self.model.network, self.model.processor, self.model.folder)
        predictor = Predictor(model, self.benchmark, self.examples, self.config.batch_size)
        chunks = in_chunks(iter(self.items), self.config.batch_size)
        predictions = [p for chunk in chunks for p in predictor.predict(chunk)]
        answers = read_answers(self.benchmark, self.items, predictions)
        scored = score(self.benchmark, self.items, answers)
        found = {"accuracy": scored.values()["accuracy"]}
        for kind in scored.types:
            found[f"accuracy/{kind}"] = scored.values(kind)["accuracy"]
        return {"evaluation": found}


def source_names(folders: Iterable[object]) -> list[str]:
    """Short names of data folders: their last parts, as many as tell them apart."""
    parts = [str(folder).rstrip("/").split("/") for folder in folders]
    longest = max(map(len, parts), default=0)
    for count in range(1, longest + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{'/'.join(part)} ({number})" for number, part in enumerate(parts)]
