"""Vision-language models of the cross-attention family: train, evaluate, ask, serve.

>>> import vlm
>>> model = vlm.load("runs/quickstart/finetune")
>>> model.ask("photo.jpg", "How many dogs are there?")

Names are looked up when first used, so `import vlm` does not import torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm.api import Model, load
    from vlm.engine.scoring import Likelihood
    from vlm.replies import Reply

    __version__: str

__all__ = ["Likelihood", "Model", "Reply", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("vlm")
        except PackageNotFoundError:  # a checkout that runs without being installed
            return "0+unknown"
    if name in __all__:
        from vlm import api

        return getattr(api, name)
    raise AttributeError(f"module 'vlm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
