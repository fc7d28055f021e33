"""A policy at work: what is flagged, and what then happens."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from vlm.errors import UserError
from vlm.safety.classifier import Classifier, ClassifierError, Content
from vlm.safety.config import Action, SafetyConfig
from vlm.safety.loading import load_classifier

logger = logging.getLogger(__name__)

Side = Literal["input", "output"]


class ContentPolicyError(UserError):
    """A conversation that the policy refuses."""


@dataclass(frozen=True)
class Verdict:
    """What was found in a piece of content.

    flagged: the score of each category that reached the threshold.
    blocked: whether it must not pass.
    """

    flagged: Mapping[str, float]
    blocked: bool


class Safety:
    """A policy and its classifiers. Any thread may call it.

    Raises:
        UserError: a classifier cannot be made.
    """

    def __init__(self, config: SafetyConfig) -> None:
        self.config = config
        self._classifiers = [(one.kind, load_classifier(one)) for one in config.classifiers]

    @property
    def checks_answers(self) -> bool:
        """Whether answers are looked at."""
        return self.config.output is not None

    def check_input(self, text: str, pictures: Sequence[Image.Image]) -> None:
        """Check what is asked.

        Raises:
            ContentPolicyError: the policy refuses it.
            ClassifierError: it could not be judged.
        """
        verdict = self._judge("input", self.config.input, Content(text, pictures))
        if verdict.blocked:
            raise ContentPolicyError(
                "the request was refused by this model's content policy: "
                f"{', '.join(sorted(verdict.flagged))}"
            )

    def check_output(self, text: str) -> Verdict:
        """Check an answer, or a part of one.

        Raises:
            ClassifierError: it could not be judged.
        """
        return self._judge("output", self.config.output, Content(text))

    def _judge(self, side: Side, action: Action | None, content: Content) -> Verdict:
        if action is None:
            return Verdict({}, blocked=False)
        flagged: dict[str, float] = {}
        for kind, classifier in self._classifiers:
            for category, score in _scores(kind, classifier, content).items():
                if score >= self.config.threshold:
                    flagged[category] = max(score, flagged.get(category, 0.0))
        if flagged:
            told = {category: round(score, 3) for category, score in flagged.items()}
            facts = {"side": side, "action": action, "flagged": told}
            logger.warning("content policy: %s %s", side, told, extra={"facts": facts})
        return Verdict(flagged, blocked=bool(flagged) and action == "block")


def _scores(kind: str, classifier: Classifier, content: Content) -> dict[str, float]:
    """What a classifier says, if it is what it may say."""
    try:
        found = dict(classifier.classify(content))
        scores = {str(category): float(score) for category, score in found.items()}
    except Exception as error:
        raise ClassifierError(f"the safety classifier {kind!r} failed: {error!r}") from error
    for category, score in scores.items():
        if not (math.isfinite(score) and 0 <= score <= 1):
            raise ClassifierError(
                f"the safety classifier {kind!r} scores {category} {score}, needed: 0 to 1"
            )
    return scores
