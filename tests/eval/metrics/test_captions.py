from collections.abc import Callable

import numpy as np
import pytest

from eval.items import Item
from eval.metrics import caption_tokens
from eval.metrics.measured import Measured

Measure = Callable[..., Measured]

CAPTIONS = [
    (("A dog runs on the grass.", "The brown dog runs."), "A brown dog runs on grass."),
    (("Two men ride a red bus.", "A bus with two men"), "A red bus with two men in it."),
    (("A cat sleeps.", "A black cat sleeps on a bed."), "A cat."),
]


def pairs() -> list[tuple[Item, str]]:
    return [
        (Item(str(number), "", answers=references), text)
        for number, (references, text) in enumerate(CAPTIONS)
    ]


def test_figures_are_the_librarys(measure: Measure) -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    references = {n: caption_tokens.plain(texts) for n, (texts, _) in enumerate(CAPTIONS)}
    candidates = {n: caption_tokens.plain([text]) for n, (_, text) in enumerate(CAPTIONS)}
    bleu = Bleu(4).compute_score(references, candidates, verbose=0)[0]
    expected = {f"BLEU-{n} (no PTB)": bleu[n - 1] for n in range(1, 5)}
    expected["CIDEr (no PTB)"] = Cider().compute_score(references, candidates)[0]
    expected["ROUGE-L (no PTB)"] = Rouge().compute_score(references, candidates)[0]
    # Sums in another order.
    assert measure("captions_plain", pairs()).values() == pytest.approx(expected, rel=1e-12)


def test_figures_of_a_part_are_those_of_its_sums(measure: Measure) -> None:
    measured = measure("captions_plain", pairs())
    alone = measure("captions_plain", pairs()[:2]).values()
    part = measured.values(np.array([0, 1]))
    for name in ("BLEU-4 (no PTB)", "BLEU-1 (no PTB)", "ROUGE-L (no PTB)"):
        assert part[name] == pytest.approx(alone[name], rel=1e-12)
    # CIDEr's document frequencies stay those of all references.
    assert part["CIDEr (no PTB)"] != pytest.approx(alone["CIDEr (no PTB)"], rel=1e-3)


def test_tokenised_texts_are_left_alone(measure: Measure) -> None:
    items = [(Item("0", "", answers=("a dog , well",)), "a dog , well"), pairs()[1]]
    assert measure("captions_tokenised", items[:1]).values()["BLEU-4 (as tokenised)"] == (
        pytest.approx(1)
    )


def test_a_caption_of_no_words_scores_nothing(measure: Measure) -> None:
    measured = measure("captions_plain", [*pairs(), (Item("3", "", answers=("a car",)), "")])
    assert measured.item_scores[3] == 0
    assert all(np.isfinite(value) for value in measured.values().values())


def test_without_java_figures_are_labelled(
    measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert next(iter(measure("captions", pairs()).values())) == "CIDEr (no PTB)"


@pytest.mark.skipif(caption_tokens.find_java() is None, reason="Java is not there")
def test_ptb_words_are_the_librarys(measure: Measure) -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = ["A man's bike, (red)!", "two\nlines", "", "5,000 caf\u00e9s -- $3.50", "the last"]
    cut = PTBTokenizer().tokenize({n: [{"caption": text}] for n, text in enumerate(texts)})
    assert caption_tokens.ptb(texts) == [cut[n][0] for n in range(len(texts))]
    assert next(iter(measure("captions", pairs()).values())) == "CIDEr"
