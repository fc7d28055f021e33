"""A model of ours in EleutherAI's lm-evaluation-harness, by the name `vlm`.

`vlm eval lm-eval --model vlm --model_args pretrained=FOLDER --tasks NAME` is lm-eval's own command,
which otherwise would not know the name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from eval.harness.requests import as_batch_size, generate, score
from vlm.api import Model, Prompt, load
from vlm.errors import UserError

NAME = "vlm"


@register_model(NAME)
class HarnessModel(LM):  # type: ignore[misc]
    """What lm-eval asks of a model, answered by ours.

    Texts are raw, without a chat template, unless lm-eval is told `--apply_chat_template`. The
    template then sees the messages, and what people wrote never becomes a special token.

    Args:
        pretrained: a model folder, or a model that is loaded already.
        device, dtype: as `vlm.load` takes them.
        batch_size: prompts run together; `auto` is what our own commands take.
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
        if isinstance(pretrained, Model):
            self.model = pretrained
        else:
            self.model = load(pretrained, device=device or "auto", dtype=dtype)
        self.batch_size = as_batch_size(batch_size, max_batch_size)
        # What the chat template made of which messages: lm-eval hands on texts only.
        self._chats: dict[str, list[Mapping[str, str]]] = {}

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """How likely each continuation is after its context, and whether greedy writes it."""
        asked = [(self._prompt(context), text) for context, text in _arguments(requests)]
        scored = score(self.model, asked, self.batch_size)
        return [(each.logprob, each.is_greedy) for each in scored]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """How likely whole texts are, each token after all that fits before it."""
        texts = [text for (text,) in _arguments(requests)]
        return [each.logprob for each in self.model.score_texts(texts, self.batch_size)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context."""
        asked = list(_arguments(requests))
        prompts = [self._prompt(context) for context, _ in asked]
        return generate(self.model, prompts, [given for _, given in asked], self.batch_size)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The messages as the model reads them; the text stands for them in later requests.

        Raises:
            UserError: the answer is begun already (a task's `gen_prefix`), which no chat of ours is.
        """
        if not add_generation_prompt:
            raise UserError("a task begins the answer (gen_prefix): run it without a chat template")
        encoded = self.model.processor.encode(chat_history, add_generation_prompt=True)
        tokenizer = self.model.processor.tokenizer
        text = tokenizer.decode(encoded.input_ids.tolist(), skip_special=False)
        self._chats[text] = list(chat_history)
        return text

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's source, for lm-eval's record; None if it is not to be applied."""
        return self.model.processor.template.source if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """What tells texts made by this tokenizer and template apart in lm-eval's cache."""
        return f"{self.model.folder.name}-{self.model.processor.fingerprint}"

    def _prompt(self, context: str) -> Prompt:
        return self._chats.get(context, context)
