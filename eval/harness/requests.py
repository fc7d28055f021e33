"""What harnesses ask for, in the words of our own API: settings of a generation, scored texts."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from eval.ranks import own_device
from vlm.api import Model, Prompt, load
from vlm.engine.scoring import Likelihood
from vlm.errors import UserError

# Transformers' names for the length of an answer, and lm-eval's.
LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens")
SAMPLING_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
DEFAULT_MAX_TOKENS = 256  # lm-eval's, for tasks that name no length
AUTO_BATCH_SIZE = 32
PLACE = "<image>"  # of a picture, in the texts of both harnesses


def answer_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a task's generation settings into those of `Model.chat`.

    Settings in transformers' names: `until` ends an answer, `do_sample: false` and temperature 0
    take the likeliest token. What has no meaning here is left out with a warning.

    Raises:
        UserError: beam search is asked for, or `until` holds something else than texts.
    """
    left = {name: value for name, value in given.items() if value is not None}
    if left.pop("num_beams", 1) != 1:
        raise UserError(f"num_beams is {given['num_beams']}; answers are written with one beam")
    lengths = [int(left.pop(name)) for name in LENGTH_NAMES if name in left]
    until = left.pop("until", [])
    stop = [until] if isinstance(until, str) else list(until)
    if not all(isinstance(text, str) for text in stop):
        raise UserError(f"until is {until!r}, needed: a text or a list of texts")
    sampling = {name: left.pop(name) for name in SAMPLING_NAMES if name in left}
    greedy = not left.pop("do_sample", sampling.get("temperature", 0) > 0)
    if greedy:
        sampling = {k: v for k, v in sampling.items() if k == "repetition_penalty"}
    elif sampling.get("top_k") == 0:  # transformers' way to take all
        del sampling["top_k"]
    if not greedy:
        sampling.setdefault("temperature", 1.0)
    if left:
        warnings.warn(f"generation settings without a meaning here: {sorted(left)}", stacklevel=2)
    return {
        "max_tokens": lengths[0] if lengths else DEFAULT_MAX_TOKENS,
        # An empty stop text would end every answer before it begins.
        "stop": tuple(text for text in stop if text),
        **sampling,
    }


def generate(
    model: Model, prompts: Sequence[Prompt], given: Sequence[Mapping[str, Any]], batch_size: int
) -> list[str]:
    """Answer prompts, each with a task's settings; those with equal ones are written together."""
    groups: dict[tuple[bool, tuple[tuple[str, Any], ...]], list[int]] = {}
    for index, (prompt, wanted) in enumerate(zip(prompts, given, strict=True)):
        kind = isinstance(prompt, str), tuple(sorted(answer_settings(wanted).items()))
        groups.setdefault(kind, []).append(index)
    texts = [""] * len(prompts)
    for (raw, settings), indices in groups.items():
        write: Any = model.complete_batch if raw else model.chat_batch
        replies = write([prompts[index] for index in indices], batch_size, **dict(settings))
        for index, reply in zip(indices, replies, strict=True):
            texts[index] = reply.text
    return texts


def score(
    model: Model, requests: Sequence[tuple[Prompt, str]], batch_size: int
) -> list[Likelihood]:
    """How likely each text is after its prompt, which is read once for all that follow it."""
    return [each for (each,) in model.score_batch([(p, [t]) for p, t in requests], batch_size)]


def show(
    messages: Sequence[Mapping[str, Any]], pictures: Sequence[Image.Image]
) -> list[dict[str, Any]]:
    """Put pictures into messages of plain text: where `<image>` stands, in order; if it stands
    nowhere, in front of the last message.

    Raises:
        UserError: there are more places than pictures, or fewer.
    """
    left = [{"type": "image", "image": picture} for picture in pictures]
    num_places = sum(message["content"].count(PLACE) for message in messages)
    if num_places not in (0, len(left)):
        raise UserError(f"a prompt has {num_places} times {PLACE} and {len(left)} pictures")
    shown = []
    for message in messages:
        first, *others = message["content"].split(PLACE)
        parts = [{"type": "text", "text": first}] if first else []
        if num_places == 0 and message is messages[-1]:
            parts, left = [*left, *parts], []
        for words in others:
            parts.append(left.pop(0))
            if words:
                parts.append({"type": "text", "text": words})
        shown.append({"role": message["role"], "content": parts})
    return shown


def open_model(pretrained: str | Model, device: str | None, dtype: str) -> Model:
    """A model folder, loaded on this process's device, or a model that is loaded already."""
    if isinstance(pretrained, Model):
        return pretrained
    return load(pretrained, device=own_device(device or "auto"), dtype=dtype)


def as_batch_size(given: int | str, most: int | None) -> int:
    """The number of prompts that are run together; `auto` is what our own commands take.

    Args:
        most: at most so many; None: no limit.
    Raises:
        UserError: it is no number.
    """
    try:
        wanted = AUTO_BATCH_SIZE if str(given).startswith("auto") else int(given)
    except ValueError:
        raise UserError(f"batch_size is {given!r}, needed: a number, or auto") from None
    return min(wanted, most or wanted)
