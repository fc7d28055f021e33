"""The optimizers, with decay on matrices only, and the learning-rate schedules."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from training.config import OptimConfig
from training.muon import Muon


def build_optimizer(modules: Iterable[nn.Module], config: OptimConfig) -> torch.optim.AdamW:
    """The optimizer of the parameters that require gradients; vectors and gates do not decay.

    A group's learning rate is the schedule's times its `rate_factor`; parameters of shape (1,) are
    tanh gates and form a group of their own. Under `muon` so do the weights of linear layers and
    convolutions but the decoder's output layer: embeddings and outputs are left to AdamW.
    """
    modules = list(modules)
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    hidden = {
        layer.weight
        for module in modules
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and name != "lm_head"
    }
    orthogonal = [p for p in trained if config.kind == "muon" and p in hidden]
    matrices = [p for p in trained if p.dim() >= 2 and not (config.kind == "muon" and p in hidden)]
    vectors = [p for p in trained if p.dim() < 2 and p.shape != (1,)]
    gates = [p for p in trained if p.shape == (1,)]
    decay, factor = config.weight_decay, config.gate_rate_factor
    groups = [
        {"params": matrices, "weight_decay": decay, "rate_factor": 1.0},
        {"params": vectors, "weight_decay": 0.0, "rate_factor": 1.0},
        {"params": gates, "weight_decay": 0.0, "rate_factor": factor},
    ]
    options = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps, "fused": True}
    if config.kind == "adamw":
        return torch.optim.AdamW(groups, **options)
    for group in groups:
        group["orthogonal"] = False
    groups.append(
        {"params": orthogonal, "weight_decay": decay, "rate_factor": 1.0, "orthogonal": True}
    )
    return Muon(groups, **options)


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
