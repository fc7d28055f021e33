"""A model of ours in lmms-eval, which finds it through `eval/harness/lmms_manifest.py`.

`python -m lmms_eval --model vlm --model_args pretrained=FOLDER --tasks NAME`, in an environment
that has lmms-eval and this package.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.utils import simple_parse_args_string

from eval.harness.requests import as_batch_size, generate, open_model, score, show
from eval.ranks import num_ranks, rank
from vlm.api import Model
from vlm.errors import UserError


class HarnessModel(lmms):
    """What lmms-eval asks of a model, answered by ours.

    A context is a user's message with its pictures in front, or each where `<image>` stands.

    Args:
        pretrained: a model folder, or a model that is loaded already.
        device, dtype: as `vlm.load` takes them.
        batch_size: prompts run together; `auto` is what our own commands take.
        max_batch_size: most of them; None: no limit.
    """

    def __init__(
        self,
        pretrained: str | Model,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.model = open_model(pretrained, device, dtype)
        self.batch_size = as_batch_size(batch_size, max_batch_size)
        self._rank, self._world_size = rank(), num_ranks()
        # Where lmms-eval counts what each process has, exchanged between hosts' memories.
        self.device = torch.device("cpu")

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> "HarnessModel":
        """What `--model_args` names; lmms-eval's own options stand for what it leaves out."""
        given = {k: v for k, v in (additional_config or {}).items() if v is not None}
        return cls(**{**given, **simple_parse_args_string(arg_string)})

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """The loss of each continuation, its mean over tokens, and whether greedy writes it.

        lmms-eval takes the choice of the smallest number. A continuation begins an answer here, so
        the space that separates it from a context is left out.
        """
        asked = []
        for request in requests:
            context, target, *rest = request.args
            if not rest:
                raise UserError("choices without a context (acc_mutual_info) are not supported")
            document, visuals = self._read(*rest)
            text = target if isinstance(target, str) else target(document)
            asked.append((_messages(context, visuals), text.lstrip()))
        scored = score(self.model, asked, self.batch_size)
        # lmms-eval 0.7 makes a text of a bare pair, and its metrics then fail.
        return [
            GenerationResult((-each.logprob / each.num_tokens, each.is_greedy)) for each in scored
        ]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What the model writes after each context."""
        prompts, given = [], []
        for request in requests:
            context, settings, *rest = request.args
            _, visuals = self._read(*rest)
            prompts.append(_messages(context, visuals))
            given.append(settings)
        return generate(self.model, prompts, given, self.batch_size)

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """What the model writes in each round; a task's `doc_to_text` makes the next one of it."""
        rounds = [_Rounds(request, *self._read_round(request)) for request in requests]
        while open_rounds := [each for each in rounds if not each.ended]:
            prompts = [_messages(each.context, each.visuals) for each in open_rounds]
            given = [each.request.args[1] for each in open_rounds]
            texts = generate(self.model, prompts, given, self.batch_size)
            for each, text in zip(open_rounds, texts, strict=True):
                each.go_on(text)
        return [each.said for each in rounds]

    def _read(
        self, doc_to_visual: Any, doc_id: int, task: str, split: str
    ) -> tuple[Any, list[Any]]:
        """A request's document and its pictures."""
        document = self.task_dict[task][split][doc_id]
        return document, list(doc_to_visual(document) or []) if doc_to_visual else []

    def _read_round(self, request: Instance) -> tuple[Any, list[Any]]:
        _, _, doc_to_visual, _, doc_id, task, split = request.args
        return self._read(doc_to_visual, doc_id, task, split)


class _Rounds:
    """An item that is asked in rounds.

    said: what the model wrote, or what the task makes of it.
    """

    def __init__(self, request: Instance, document: Any, visuals: list[Any]) -> None:
        self.request, self.document, self.visuals = request, document, visuals
        self.context = request.args[0]
        self.said: list[str] = []
        self.ended = False
        self._info: Any = None
        self._number = 0

    def go_on(self, text: str) -> None:
        """Take what was written and ask the task what comes next."""
        self._number += 1
        self.visuals, self.context, self.ended, self.said, self._info = self.request.args[3](
            self.document,
            previous_output=[*self.said, text],
            round_idx=self._number,
            previous_round_info=self._info,
        )
        self.said = list(self.said)


def _messages(context: str, visuals: Sequence[Any]) -> list[dict[str, Any]]:
    return show([{"role": "user", "content": context}], visuals or ())
