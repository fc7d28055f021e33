"""RMSNorm and the SwiGLU feed-forward layer."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square normalisation of the last axis, computed in float32.

    https://arxiv.org/abs/1910.07467, equation 4.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Same shape and dtype as `hidden`."""
        if hidden.dtype == torch.float32:
            return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)
        normalised = F.rms_norm(hidden.float(), self.weight.shape, None, self.eps)
        return self.weight * normalised.to(hidden.dtype)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); https://arxiv.org/abs/2002.05202."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """Same shape as `hidden`."""
        gated: Tensor = self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return gated
