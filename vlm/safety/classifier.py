"""What a classifier is: it gives texts and pictures scores by category."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image


@dataclass(frozen=True)
class Content:
    """What is to be judged: a conversation's text and pictures, or an answer's text.

    pictures: upright, RGB.
    """

    text: str
    pictures: Sequence[Image.Image] = ()


class Classifier(Protocol):
    """Judges content. Any thread may call it, several at the same time."""

    def classify(self, content: Content) -> Mapping[str, float]:
        """Return a score from 0 to 1 for each category that it knows.

        What it raises fails the request: nothing passes unchecked.
        """
        ...


class ClassifierError(Exception):
    """A classifier failed, or gave what are no scores."""
