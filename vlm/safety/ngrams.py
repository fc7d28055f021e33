"""A small text classifier that an operator trains: logistic regression over hashed n-grams.

It learns spellings, not meanings, from a few hundred examples on, in seconds on a CPU, and knows
one thing: which letters stand together in texts that its examples called so. Use it for what is
near to its examples, sentences of a dozen words or less, after looking at its figures on held-out
ones; it is no moderation model.

Axes: `C` categories, `F` hash buckets.
"""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from zlib import crc32

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlm.errors import UserError
from vlm.safety.classifier import Content

FORMAT = "vlm-ngrams-1"
SIZES = (2, 3, 4)
NUM_BUCKETS = 2**15
# A long text is judged by its worst part: among much else, a sentence would be lost.
WINDOW_WORDS = 12
SENTENCE_END = re.compile(r"(?<=[.!?])\s|\n")
EPOCHS = 60
LEARNING_RATE = 0.3
WEIGHT_DECAY = 1e-4
BATCH_TEXTS = 64


class NgramClassifier:
    """Scores of categories that do not exclude each other.

    Args:
        weight: (F, C) float32.
        bias: (C,) float32.
    """

    def __init__(self, categories: Sequence[str], weight: Tensor, bias: Tensor) -> None:
        self.categories = tuple(categories)
        self._weight, self._bias = weight, bias

    @classmethod
    def from_file(cls, file: str) -> "NgramClassifier":
        """Read what `save` wrote.

        Raises:
            UserError: there is no such file, or it is another one.
        """
        try:
            with safe_open(file, framework="pt") as stored:
                about = stored.metadata() or {}
                if about.get("format") != FORMAT:
                    raise UserError(f"{file} is not what `vlm safety train` writes")
                weight, bias = stored.get_tensor("weight"), stored.get_tensor("bias")
        except (OSError, SafetensorError) as error:
            raise UserError(f"the classifier {file} cannot be read: {error}") from error
        return cls(json.loads(about["categories"]), weight, bias)

    @classmethod
    def train(cls, texts: Sequence[str], labels: Sequence[Sequence[str]]) -> "NgramClassifier":
        """Learn from texts and the categories of each; the same examples give the same weights.

        Raises:
            UserError: a category is on no text, or on all.
        """
        categories = sorted({category for found in labels for category in found})
        targets = torch.tensor([[float(c in found) for c in categories] for found in labels])
        shares = targets.mean(dim=0) if categories else torch.zeros(1)
        if not categories or bool((shares == 1).any()):
            raise UserError("needed are texts with each category and texts without it")
        weight = torch.zeros(NUM_BUCKETS, len(categories), requires_grad=True)
        bias = torch.logit(shares).requires_grad_(True)
        optim = torch.optim.AdamW([weight, bias], LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        bags = [_bag(text) for text in texts]
        generator = torch.Generator().manual_seed(0)
        for _ in range(EPOCHS):
            order = torch.randperm(len(bags), generator=generator).tolist()
            for start in range(0, len(order), BATCH_TEXTS):
                rows = order[start : start + BATCH_TEXTS]
                scores = _scores([bags[row] for row in rows], weight, bias)
                loss = F.binary_cross_entropy_with_logits(scores, targets[rows])
                optim.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optim.step()
        return cls(categories, weight.detach(), bias.detach())

    def save(self, file: Path) -> None:
        """Write the weights."""
        about = {"format": FORMAT, "categories": json.dumps(self.categories)}
        save_file({"weight": self._weight, "bias": self._bias}, file, about)

    @torch.inference_mode()
    def classify(self, content: Content) -> Mapping[str, float]:
        """Return the score of each category in the worst part; pictures are not looked at."""
        bags = [_bag(part) for part in _windows(content.text)]
        worst = _scores(bags, self._weight, self._bias).sigmoid().amax(dim=0)
        return dict(zip(self.categories, worst.tolist(), strict=True))


def _scores(bags: Sequence[tuple[list[int], list[float]]], weight: Tensor, bias: Tensor) -> Tensor:
    """Log odds (texts, C) of bags of buckets with their values."""
    sizes = torch.tensor([0, *(len(buckets) for buckets, _ in bags)])
    buckets = torch.tensor([bucket for found, _ in bags for bucket in found], dtype=torch.int64)
    values = torch.tensor([value for _, found in bags for value in found], dtype=torch.float32)
    starts = sizes.cumsum(0)[:-1]
    return bias + F.embedding_bag(buckets, weight, starts, mode="sum", per_sample_weights=values)


def _bag(text: str) -> tuple[list[int], list[float]]:
    """A text's hashed n-grams, at least one, and the value of each: together of length 1."""
    counts: dict[int, int] = {}
    marked = f" {' '.join(unicodedata.normalize('NFKC', text).casefold().split())} "
    for size in SIZES:
        for start in range(max(1, len(marked) - size + 1)):
            piece = marked[start : start + size]
            bucket = crc32(piece.encode("utf-8", "replace")) % NUM_BUCKETS
            counts[bucket] = counts.get(bucket, 0) + 1
    length = sum(count * count for count in counts.values()) ** 0.5
    return list(counts), [count / length for count in counts.values()]


def _windows(text: str) -> list[str]:
    """The sentences of a text, long ones in overlapping parts."""
    half = WINDOW_WORDS // 2
    parts = []
    for sentence in SENTENCE_END.split(text):
        words = sentence.split()
        starts = range(0, max(1, len(words) - half), half)
        parts += [" ".join(words[start : start + WINDOW_WORDS]) for start in starts]
    return parts
