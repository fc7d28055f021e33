"""Classifiers by the names that a policy gives them."""

from collections.abc import Callable, Mapping
from pkgutil import resolve_name

from vlm.errors import UserError
from vlm.safety.classifier import Classifier
from vlm.safety.config import ClassifierConfig
from vlm.safety.ngrams import NgramClassifier
from vlm.safety.pictures import PictureClassifier
from vlm.safety.words import WordClassifier

KINDS: Mapping[str, Callable[..., Classifier]] = {
    "words": WordClassifier,
    "ngrams": NgramClassifier.from_file,
    "pictures": PictureClassifier.from_folder,
}


def load_classifier(config: ClassifierConfig) -> Classifier:
    """Make the classifier that a policy names.

    Raises:
        UserError: there is none of that name, or it does not take these settings.
    """
    make = KINDS.get(config.kind)
    if make is None:
        make = _installed(config.kind)
    try:
        classifier = make(**config.settings)
    except TypeError as error:
        raise UserError(f"safety classifier {config.kind!r}: {error}") from error
    if not callable(getattr(classifier, "classify", None)):
        raise UserError(f"safety classifier {config.kind!r} has no method `classify`")
    return classifier


def _installed(kind: str) -> Callable[..., Classifier]:
    """A class of an installed package, by `package.module:Class`."""
    if ":" not in kind:
        raise UserError(
            f"there is no safety classifier {kind!r}; there are {', '.join(KINDS)}, and "
            "package.module:Class of an installed package"
        )
    try:
        found = resolve_name(kind)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"safety classifier {kind!r} cannot be imported: {error}") from error
    if not callable(found):
        raise UserError(f"safety classifier {kind!r} is no class")
    made: Callable[..., Classifier] = found
    return made
