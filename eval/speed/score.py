"""The likelihood of several answers with what they share run once, beside each answer alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from encoders.tiling import TiledImage
from eval.speed.decode import read_size
from eval.speed.harness import Row, time_in_turn, time_row
from vlm.engine.image_cache import ImageCache
from vlm.engine.scoring import Choices, Scorer
from vlm.inputs import Example
from vlm.model import VisionLanguageModel

KEPT_BYTES = 2**30
# How far sums of log probabilities may be apart for each of their tokens, by dtype.
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.1, "float16": 0.02}


@dataclass(frozen=True)
class Load:
    """So many prompts, the text tokens of each, its answers, and the tokens of each of those."""

    num_prompts: int
    prompt_tokens: int
    num_choices: int
    choice_tokens: int


class Comparison:
    """A network of random weights and prompts of a picture, words and several answers."""

    def __init__(self, size: str, load: Load, device: torch.device, dtype: str) -> None:
        self.load, self.device, self.dtype = load, device, dtype
        config = read_size(size)
        self.vocab_size = config.decoder.vocab_size
        torch.manual_seed(0)
        with device:
            self.network = VisionLanguageModel(config, self.vocab_size)
        for name, parameter in self.network.named_parameters():
            if "gate" in name.rpartition(".")[2]:  # a closed gate would hide what lies behind it
                nn.init.constant_(parameter, 0.5)
        self.network.to(getattr(torch, dtype)).requires_grad_(False).eval()
        px = config.vision.tile_size_px
        self.questions = [
            Choices(
                self._prompt(TiledImage(torch.randint(0, 256, (1, 3, px, px)).byte(), 1, (1, 1))),
                tuple(
                    tuple(torch.randint(0, self.vocab_size, (load.choice_tokens,)).tolist())
                    for _ in range(load.num_choices)
                ),
            )
            for _ in range(load.num_prompts)
        ]
        self.seen = Scorer(self.network, ImageCache(KEPT_BYTES))

    def together(self, scorer: Scorer) -> list[float]:
        """The log probability of every answer, what they share being run once."""
        told = scorer.score(self.questions, self.load.num_prompts)
        return [likelihood.logprob for row in told for likelihood in row]

    def alone(self, scorer: Scorer | None) -> list[float]:
        """The same, each answer by itself; without a scorer nothing is kept from one to the next.

        As many rows are run together as on the other side.
        """
        told = []
        for number in range(self.load.num_choices):
            single = [Choices(q.prompt, (q.continuations[number],)) for q in self.questions]
            told.append((scorer or self.new_scorer()).score(single, self.load.num_prompts))
        return [row[0].logprob for rows in zip(*told, strict=True) for row in rows]

    def new_scorer(self) -> Scorer:
        """A scorer that has seen no picture."""
        return Scorer(self.network, ImageCache(KEPT_BYTES))

    def check(self) -> str:
        """Say in one line how far the two sides are apart.

        Raises:
            RuntimeError: too far.
        """
        pairs = zip(self.together(self.new_scorer()), self.alone(None), strict=True)
        worst = max(abs(one - other) for one, other in pairs)
        allowed = TOLERANCES[self.dtype] * self.load.choice_tokens
        line = (
            f"batch {self.load.num_prompts}: log probabilities of {self.load.choice_tokens} tokens "
            f"differ by at most {worst:.1e}"
        )
        if not worst <= allowed:
            raise RuntimeError(f"the answers differ. {line}, allowed: {allowed:.0e}")
        return f"{line} (allowed: {allowed:.0e})"

    def _prompt(self, image: TiledImage) -> Example:
        input_ids = torch.randint(0, self.vocab_size, (self.load.prompt_tokens,))
        input_ids[0] = self.vocab_size
        return Example(input_ids, torch.zeros(len(input_ids), dtype=torch.bool), (image,))


def compare_with_alone(
    size: str, load: Load, device: torch.device, dtype: str, repeats: int
) -> tuple[Sequence[Row], str]:
    """Measure both ways, with new pictures and with pictures seen before.

    Returns:
        the rows, and a line that says how far the two are apart.
    """
    sides = Comparison(size, load, device, dtype)
    agreement = sides.check()
    new = time_in_turn(
        lambda: sides.together(sides.new_scorer()), lambda: sides.alone(None), device, repeats
    )
    seen = time_in_turn(
        lambda: sides.together(sides.seen), lambda: sides.alone(sides.seen), device, repeats
    )
    setting = f"{size} batch {load.num_prompts} {dtype} {device.type}"
    return [
        time_row(f"{load.num_choices} choices, new picture", setting, *new),
        time_row(f"{load.num_choices} choices, seen picture", setting, *seen),
    ], agreement
