"""Patterns by category: finds what it is told to find, in text, and nothing else.

It knows words, not meanings: whoever writes around a pattern passes, and a harmless sentence that
holds one is flagged. It suits lists that an operator must keep (names, codes, slurs) and stands
beside a classifier that was trained.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

from vlm.errors import UserError
from vlm.safety.classifier import Content


class WordClassifier:
    """Scores 1 for each category of which a pattern is found, else 0.

    Text is compared without regard to case and to Unicode's variants of letters (full width,
    ligatures), and without the invisible characters that may part a word.

    Args:
        words: whole words or phrases by category.
        patterns: regular expressions of Python by category, on the text in lower case.
    Raises:
        UserError: neither has a category, a pattern is no regular expression, or a list is empty.
    """

    def __init__(
        self,
        words: Mapping[str, Sequence[str]] | None = None,
        patterns: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        sources: dict[str, list[str]] = {}
        for category, given in (words or {}).items():
            phrases = [r"\s+".join(map(re.escape, _plain(phrase).split())) for phrase in given]
            sources.setdefault(category, []).extend(rf"(?<!\w){p}(?!\w)" for p in phrases if p)
        for category, given in (patterns or {}).items():
            sources.setdefault(category, []).extend(given)
        empty = [category for category, found in sources.items() if not found]
        if not sources or empty:
            raise UserError(
                f"the word list of {empty[0] if empty else 'the safety classifier'} is empty; "
                "needed: words or patterns, a list for each category"
            )
        self._patterns = {
            category: _compiled(category, found) for category, found in sources.items()
        }

    def classify(self, content: Content) -> Mapping[str, float]:
        """Return 0 or 1 for each category; pictures are not looked at."""
        text = _plain(content.text)
        return {
            category: float(pattern.search(text) is not None)
            for category, pattern in self._patterns.items()
        }


def _compiled(category: str, sources: Sequence[str]) -> re.Pattern[str]:
    for source in sources:
        try:
            re.compile(source)
        except re.error as error:
            raise UserError(
                f"the safety pattern {source!r} of {category} is no regular expression: {error}"
            ) from error
    return re.compile("|".join(f"(?:{source})" for source in sources))


def _plain(text: str) -> str:
    """Lower case, compatible letters made one, invisible format characters left out."""
    normal = unicodedata.normalize("NFKC", text).casefold()
    return "".join(letter for letter in normal if unicodedata.category(letter) != "Cf")
