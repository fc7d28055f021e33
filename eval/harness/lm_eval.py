"""A model of ours in EleutherAI's lm-evaluation-harness, by the name `vlm`.

`vlm eval lm-eval --model vlm --model_args pretrained=FOLDER --tasks NAME` is lm-eval's own command,
which has no other way to be told of the name.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import torch
import torch.distributed
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import simple_parse_args_string
from torch import Tensor

from eval.harness.requests import as_batch_size, generate, open_model, score, show
from eval.ranks import num_ranks, rank, wait_for_all
from vlm.api import Model, Prompt
from vlm.errors import UserError

NAME = "vlm"
# What lm-eval says where nobody names a device: the first GPU, if there is one.
DEFAULT_DEVICE = "cuda:0"


@register_model(NAME)
class HarnessModel(LM):
    """What lm-eval asks of a model, answered by ours.

    Texts are raw, without a chat template, unless lm-eval is told `--apply_chat_template`. The
    template then sees the messages, and what people wrote never becomes a special token. Of tasks
    with pictures the template is needed; `<image>` in a message is the place of the next picture.
    Several processes share the items (`torchrun -m vlm eval lm-eval ...`).

    Args:
        pretrained: a model folder, or a model that is loaded already.
        device, dtype: as `vlm.load` takes them.
        batch_size: prompts run together; `auto` is what our own commands take.
        max_batch_size: most of them; None: no limit.
    """

    MULTIMODAL = True

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
        # What the chat template made of which messages: lm-eval hands on texts only.
        self._chats: dict[str, Sequence[Mapping[str, Any]]] = {}
        self._rank, self._world_size = rank(), num_ranks()
        # Where lm-eval counts what each process has, exchanged between hosts' memories.
        self._device = torch.device("cpu")

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> "HarnessModel":
        """What `--model_args` names, as text; see `create_from_arg_obj`."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "HarnessModel":
        """What `--model_args` names; lm-eval's own options stand for what it leaves out."""
        given = {k: v for k, v in (additional_config or {}).items() if v is not None}
        if given.get("device") == DEFAULT_DEVICE:
            given["device"] = "auto"
        return cls(**{**given, **arg_dict})

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """How likely each continuation is after its context, and whether greedy writes it."""
        asked = [(self._prompt(request), request.args[1]) for request in requests]
        scored = score(self.model, asked, self.batch_size)
        return [(each.logprob, each.is_greedy) for each in scored]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """How likely whole texts are, each token after all that fits before it."""
        texts = [request.args[0] for request in requests]
        return [each.logprob for each in self.model.score_texts(texts, self.batch_size)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context."""
        prompts = [self._prompt(request) for request in requests]
        given = [request.args[1] for request in requests]
        return generate(self.model, prompts, given, self.batch_size)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The messages as the model reads them; in later requests the text stands for them.

        Raises:
            UserError: a task begins the answer itself (`gen_prefix`), which is not supported.
        """
        if not add_generation_prompt:
            raise UserError(
                "the task begins the answer (gen_prefix), which works on raw texts only: leave out "
                "--apply_chat_template, or choose another task"
            )
        text = self.model.prompt_text(chat_history)
        self._chats[text] = chat_history
        return text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, for lm-eval's record; None where it is not applied."""
        return self.model.processor.template.source if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """What `--cache_requests` keeps chats under: never the same, for only this object knows
        which messages a text stands for."""
        return f"{self.model.processor.fingerprint}-{uuid4()}"

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The number that each process has, in one tensor."""
        if num_ranks() == 1:
            return tensor
        wait_for_all()
        found = [torch.zeros_like(tensor) for _ in range(num_ranks())]
        torch.distributed.all_gather(found, tensor)
        return torch.stack(found)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """What each process has, for the process `dst`; None in the others."""
        if num_ranks() == 1:
            return [obj]
        found: list[Any] | None = [None] * num_ranks() if rank() == dst else None
        torch.distributed.gather_object(obj, found, dst)
        return found

    def barrier(self) -> None:
        """Return when every process has come here."""
        wait_for_all()

    def _prompt(self, request: Instance) -> Prompt:
        """A request's context: a raw text, or the messages that it stands for."""
        context, extra = request.args[0], request.args[2:]
        messages = self._chats.get(context)
        if not extra:
            return context if messages is None else messages
        unknown = set(extra[0]) - {"visual"}
        if unknown:
            raise UserError(f"the task has {sorted(unknown)[0]}; models read text and pictures")
        if messages is None:
            raise UserError("tasks with pictures need --apply_chat_template")
        return show(messages, extra[0]["visual"])


def run(arguments: Sequence[str]) -> None:
    """Run lm-eval's command with our models known to it."""
    sys.argv = ["lm-eval", *arguments]
    cli_evaluate()
