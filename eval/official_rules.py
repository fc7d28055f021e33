"""How the benchmarks' own scripts read an answer, with their quirks.

Figures compare with published ones only where answers are read alike. Each function gets the text
as it was written, outer white space included, for the scripts do.
"""

import re

from eval.items import LETTERS, Item

_MMBENCH_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_MMBENCH_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


def pope(text: str) -> str:
    """`no` if the first sentence has the word No, no or not, else `yes`.

    A text without either is a yes, and so is "NO". Words are parted by spaces, a sentence ends at
    the first period, commas go.
    Source: https://github.com/RUCAIBox/POPE, evaluate.py; the same in
    https://github.com/haotian-liu/LLaVA, llava/eval/eval_pope.py.
    """
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"}.intersection(words) else "yes"


def mme(text: str) -> str:
    """`yes` or `no`, if the first four characters hold it; else `other`, which is wrong.

    Case does not matter. "Not" is a no, "I know" is none.
    Source: calculation.py of MME's eval_tool,
    https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models.
    """
    start = text.lower()[:4]
    if "yes" in start:
        return "yes"
    return "no" if "no" in start else "other"


def scienceqa(item: Item, text: str) -> int | None:
    """The choice of a text that is a letter, begins with `B. ` or says `The answer is B`.

    Letters are A to E; one beyond the choices is no choice.
    Source: https://github.com/haotian-liu/LLaVA, llava/eval/eval_science_qa.py.
    """
    line = text.replace("\n", ". ")
    said = re.fullmatch(r"\s*([A-E])\s*", line) or re.match(r"([A-E])\. ", line)
    # A letter before a period wins over one that comes earlier.
    said = said or re.search(r"The answer is ([A-E])\.", line)
    said = said or re.search(r"The answer is ([A-E])", line)
    return _place(item, said.group(1)) if said else None


def mmbench(item: Item, text: str) -> int | None:
    """The choice whose letter, or else whose words, a text holds, if it holds no other.

    A letter must be a word by itself, among the last five; words count in texts of at most twice
    the length of all choices. This is VLMEvalKit's reading without a judge; published figures had
    one for what cannot be read so.
    Source: https://github.com/open-compass/VLMEvalKit, vlmeval/utils/matching_util.py.
    """
    if any(refusal in text for refusal in _MMBENCH_REFUSALS):
        return None
    words = text.translate(_MMBENCH_SPACES).split()
    letters = [letter for letter in LETTERS[: len(item.choices)] if letter in words]
    if len(letters) == 1 and words.index(letters[0]) > len(words) - 5:
        return _place(item, letters[0])
    if not letters and "Z" in words:
        return None
    lowered = text.lower()
    if len(lowered) > 2 * sum(len(choice) for choice in item.choices):
        return None
    held = [place for place, choice in enumerate(item.choices) if choice.lower() in lowered]
    return held[0] if len(held) == 1 else None


def mmmu(item: Item, text: str) -> int | None:
    """The choice whose letter a text names last: in brackets, else as a word, else by its words.

    None where the official code draws lots, which the metric `mmmu` does. Words count in texts of
    more than five words.
    Source: https://github.com/MMMU-Benchmark/MMMU, eval/eval_utils.py,
    parse_multi_choice_response.
    """
    for mark in (",", ".", "!", "?", ";", ":", "'"):
        text = text.strip(mark)
    padded = f" {text} "
    letters = LETTERS[: len(item.choices)]
    for form in ("({})", " {} "):
        found = [padded.rfind(form.format(letter)) for letter in letters]
        if max(found, default=-1) >= 0:
            return found.index(max(found))
    if len(padded.split()) > 5:
        lowered = padded.lower()
        found = [lowered.rfind(choice.lower()) for choice in item.choices]
        if max(found, default=-1) >= 0:
            return found.index(max(found))
    return None


def _place(item: Item, letter: str) -> int | None:
    place = LETTERS.index(letter)
    return place if place < len(item.choices) else None
