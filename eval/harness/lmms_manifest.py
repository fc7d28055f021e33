"""What lmms-eval is told of our models when it starts, without loading any of them."""

from lmms_eval.models.registry_v2 import ModelManifest

NAME = "vlm"


def manifest() -> ModelManifest:
    """Return the name of our models there, and where their class is.

    pyproject.toml names this function in the entry point group `lmms_eval.models`.
    """
    return ModelManifest(model_id=NAME, simple_class_path="eval.harness.lmms_eval.HarnessModel")
