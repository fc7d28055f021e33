"""What a run shows of its parts: gradient norms, rates, and how far the gates are open."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from training.stages import Part


class PartsLog:
    """Figures of the parts of a model; their names have a slash, as in `gradient_norm/encoder`.

    Gates are the parameters of shape (1,) with that word in their name; `gate/NAME` is the tanh
    of one, the share that passes it.
    """

    def __init__(self, parts: Mapping[Part, Mapping[str, nn.Parameter]]) -> None:
        trained = {
            part: {name: p for name, p in parameters.items() if p.requires_grad}
            for part, parameters in parts.items()
        }
        self._parts = {part: found for part, found in trained.items() if found}
        self._gates = {
            name: parameter
            for parameters in parts.values()
            for name, parameter in parameters.items()
            if parameter.shape == (1,) and "gate" in name.rpartition(".")[2]
        }

    def gradient_norms(self) -> dict[str, float]:
        """The norm of each trained part's gradient, as it stands."""
        norms = {}
        for part, parameters in self._parts.items():
            gradients = [p.grad for p in parameters.values() if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            norms[f"gradient_norm/{part}"] = _whole(norm).item()
        return norms

    def gates(self) -> dict[str, float]:
        """How far each gate is open, -1..1."""
        if not self._gates:
            return {}
        values = torch.cat([_whole(gate.detach()) for gate in self._gates.values()]).tanh()
        return {f"gate/{name}": v for name, v in zip(self._gates, values.tolist(), strict=True)}


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of which ranks may have parts."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    return tensor
