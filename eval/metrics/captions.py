"""Captions: CIDEr, BLEU and ROUGE-L through pycocoevalcap.

https://github.com/salaniz/pycocoevalcap, the scorers of COCO's caption evaluation. Published
figures are of texts that Stanford's PTB tokenizer has cut, a Java program that comes with that
package. Without Java, texts are cut by a plain rule of ours, and every figure's name says so, for
it is not comparable.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from eval.items import Answer, Item
from eval.metrics import caption_tokens
from eval.metrics.measured import Array, Measured, divide
from vlm.errors import UserError

ORDERS = 4
# What the library adds to counts so that nothing is divided by zero.
TINY, SMALL = 1e-15, 1e-9
# The highest CIDEr there is: of a caption that is the same as all its references.
MOST_CIDER = 10.0


def measure(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """`CIDEr`, `BLEU-4` to `BLEU-1`, `ROUGE-L`; without Java `CIDEr (no PTB)` and so on."""
    if caption_tokens.find_java() is None:
        return measure_plain(items, answers)
    return _measure(items, answers, caption_tokens.ptb, "")


def measure_plain(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """The same on every machine, with texts cut by our plain rule: `CIDEr (no PTB)`."""
    return _measure(items, answers, caption_tokens.plain, " (no PTB)")


def measure_tokenised(items: Sequence[Item], answers: Sequence[Answer]) -> Measured:
    """The same of texts that are tokenised already, by white space: `CIDEr (as tokenised)`."""
    return _measure(items, answers, caption_tokens.as_they_are, " (as tokenised)")


def _measure(
    items: Sequence[Item],
    answers: Sequence[Answer],
    tokenise: caption_tokens.Tokenise,
    label: str,
) -> Measured:
    """Measure captions; document frequencies are those of all references."""
    if find_spec("pycocoevalcap") is None:
        raise UserError("captions are measured by pycocoevalcap: install vlm's extra `eval`")
    for item in items:
        if not item.answers:
            raise UserError(f"item {item.id!r} has no reference captions")
    references, candidates = _tokenised(items, answers, tokenise)
    cider, rouge = _consensus(references, candidates), _overlap(references, candidates)
    counts = _bleu_counts(references, candidates)
    ones = np.ones_like(cider)

    def figures(sums: Array) -> dict[str, Array]:
        bleu = _bleu(sums[..., 3:])
        found = {"CIDEr": divide(sums[..., 0], sums[..., 2])}
        found |= {f"BLEU-{n}": bleu[n - 1] for n in range(ORDERS, 0, -1)}
        found["ROUGE-L"] = divide(sums[..., 1], sums[..., 2])
        return {f"{name}{label}": value for name, value in found.items()}

    return Measured(
        item_scores=np.clip(cider / MOST_CIDER, 0, 1),
        unit=np.arange(len(items)),
        statistics=np.concatenate([np.stack([cider, rouge, ones], axis=1), counts], axis=1),
        figures=figures,
        plain=frozenset({f"CIDEr{label}"}),
    )


def _tokenised(
    items: Sequence[Item], answers: Sequence[Answer], tokenise: caption_tokens.Tokenise
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """References and candidates by item, in one run of the tokenizer, as the library wants them."""
    texts = [text for item in items for text in item.answers]
    texts += [answer.value for answer in answers]
    cut = iter(tokenise(texts))
    references = {number: [next(cut) for _ in item.answers] for number, item in enumerate(items)}
    return references, {number: [next(cut)] for number in range(len(answers))}


def _consensus(references: dict[int, list[str]], candidates: dict[int, list[str]]) -> Array:
    from pycocoevalcap.cider.cider import Cider

    return np.asarray(Cider().compute_score(references, candidates)[1], dtype=np.float64)


def _overlap(references: dict[int, list[str]], candidates: dict[int, list[str]]) -> Array:
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge()
    scores = [scorer.calc_score(candidates[number], references[number]) for number in references]
    return np.asarray(scores, dtype=np.float64)


def _bleu_counts(references: dict[int, list[str]], candidates: dict[int, list[str]]) -> Array:
    """Of each item (2 + 2 * 4,): its length, that of the nearest reference, n-grams and hits."""
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    counts = np.zeros((len(references), 2 + 2 * ORDERS))
    for number, texts in references.items():
        found: dict[str, Any] = cook_test(candidates[number][0], cook_refs(texts, n=ORDERS))
        length = found["testlen"]
        nearest = min(found["reflen"], key=lambda reference: (abs(reference - length), reference))
        counts[number] = (length, nearest, *found["guess"], *found["correct"])
    return counts


def _bleu(sums: Array) -> Array:
    """BLEU-1 to BLEU-4, (4, ...), of summed counts (..., 10), with the brevity penalty."""
    length, nearest = sums[..., 0], sums[..., 1]
    guesses, hits = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    precisions = np.cumprod((hits + TINY) / (guesses + SMALL), axis=-1)
    ratio = (length + TINY) / (nearest + SMALL)
    penalty = np.where(ratio < 1, np.exp(1 - 1 / np.maximum(ratio, TINY)), 1.0)
    return np.stack([precisions[..., n] ** (1 / (n + 1)) * penalty for n in range(ORDERS)])
