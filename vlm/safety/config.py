"""What is checked, by which classifiers, and what happens to what they flag."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Action = Literal["block", "log"]


class ClassifierConfig(BaseModel):
    """A classifier and its settings.

    kind: one of `vlm.safety.loading.KINDS`, or `package.module:Class`, a class of an installed
        package that is called with `settings` as keywords and gives a
        `vlm.safety.classifier.Classifier`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(min_length=1)
    settings: dict[str, Any] = {}


class SafetyConfig(BaseModel):
    """A policy.

    classifiers: all of them see everything that is checked.
    threshold: a category is flagged from this score on.
    input: what happens to a conversation that is flagged, its text or its pictures: it is refused,
        or answered and logged. None: conversations are not checked.
    output: the same of answers; of one that is blocked, the text is replaced.
    replacement: what stands in its place.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    classifiers: tuple[ClassifierConfig, ...] = Field(min_length=1)
    threshold: float = Field(default=0.5, gt=0, le=1)
    input: Action | None = "block"
    output: Action | None = "block"
    replacement: str = "This answer was withheld by a content policy."
