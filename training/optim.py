"""AdamW with decay on matrices only, and the learning-rate schedules."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from training.config import OptimConfig


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that require gradients; vectors, gates and biases do not decay.

    A group's learning rate is the schedule's times its `rate_factor`; parameters of shape (1,) are
    tanh gates and form a group of their own.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    matrices = [p for p in trained if p.dim() >= 2]
    gates = [p for p in trained if p.shape == (1,)]
    vectors = [p for p in trained if p.dim() < 2 and p.shape != (1,)]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay, "rate_factor": 1.0},
        {"params": vectors, "weight_decay": 0.0, "rate_factor": 1.0},
        {"params": gates, "weight_decay": 0.0, "rate_factor": config.gate_rate_factor},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True
    )


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """The rate of the optimizer step `step` (from 0) of `steps`.

    Linear warm-up, then: `inverse_sqrt`, the peak times sqrt(warmup / step)
    (https://arxiv.org/abs/1706.03762, equation 3); `cosine`, half a cosine to zero;
    `warmup_stable_decay`, the peak, then linearly to zero (https://arxiv.org/abs/2404.06395).
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "inverse_sqrt":
        return peak * math.sqrt(warmup / (step + 1))
    if config.schedule == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    assert config.decay_steps is not None
    return peak * min(1.0, (steps - step) / config.decay_steps)
