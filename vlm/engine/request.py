"""What the engine is asked, and what it says of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from vlm.engine.constraint import Grammar
from vlm.engine.image_cache import image_key
from vlm.engine.sampling import SamplingConfig
from vlm.inputs import Example
from vlm.model import VisionLanguageModel

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Request:
    """One answer to generate.

    max_new_tokens: the answer ends there with the reason "length".
    image_keys: for each image of the prompt, a name that only the same picture has; see
        `vlm.engine.image_cache.image_key`.
    grammar: what the answer must look like; None: anything.
    """

    prompt: Example
    sampling: SamplingConfig
    max_new_tokens: int
    image_keys: tuple[str, ...] = ()
    grammar: Grammar | None = None

    @classmethod
    def of(cls, prompt: Example, sampling: SamplingConfig, max_new_tokens: int) -> Self:
        """A request with the keys of its images; hashing them takes milliseconds a picture."""
        return cls(prompt, sampling, max_new_tokens, tuple(map(image_key, prompt.images)))


@dataclass(frozen=True)
class Event:
    """What became of a request in a step: a token, its end, or both.

    token: None where the request ended without one.
    logprob: the token's log probability, before grammar, temperature and cuts, if it was asked for.
    top_logprobs: the likeliest tokens and their log probabilities, the likeliest first.
    finish_reason: set in a request's last event.
    error: what went wrong, if the reason is "error".
    """

    request_id: int
    token: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None


def check_prompt(network: VisionLanguageModel, prompt: Sequence[int], num_images: int) -> None:
    """Check that a network can read a prompt, and that its image tokens stand for its images.

    Raises:
        ValueError: an id is none of the network's, or there are other images than the tokens say.
    """
    num_embeddings = network.decoder.config.num_embeddings
    if min(prompt) < 0 or max(prompt) >= num_embeddings:
        raise ValueError(
            f"the prompt's token ids run from {min(prompt)} to {max(prompt)}, "
            f"the model's from 0 to {num_embeddings - 1}"
        )
    num_shown = prompt.count(network.image_token_id)
    if num_shown != num_images:
        raise ValueError(
            f"the prompt has {num_shown} image tokens and {num_images} images; "
            "needed: as many of each"
        )
