"""Moving averages of the trained weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.config import EmaConfig


class Ema:
    """The averages, which begin as the weights; frozen weights have none.

    Attributes:
        averages: by `component.name`, dtype and place of the weights.
    """

    def __init__(self, modules: Mapping[str, nn.Module], config: EmaConfig) -> None:
        self.config = config
        self._weights = {
            f"{component}.{name}": parameter
            for component, module in modules.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self.averages = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of a step into account."""
        averages: list[Tensor] = list(self.averages.values())
        weights: list[Tensor] = list(self._weights.values())
        torch._foreach_lerp_(averages, weights, 1 - self.config.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this context the modules have the averages as weights, if they are written."""
        if not self.config.write:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, weight in self._weights.items():
            average: Tensor = self.averages[name]
            held = weight.detach().clone()
            weight.copy_(average)
            average.copy_(held)
