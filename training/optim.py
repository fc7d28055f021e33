"""The optimizers, with decay on matrices only, and the learning-rate schedules."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from training.adamw import CompactAdamW
from training.config import OptimConfig, PartName, PartOptimConfig
from training.muon import Muon
from training.stages import Part
from vlm.errors import UserError


def build_optimizer(
    modules: Iterable[nn.Module],
    config: OptimConfig,
    parts: Mapping[Part, Mapping[str, nn.Parameter]] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer of the parameters that require gradients; vectors and gates do not decay.

    A group's learning rate is the schedule's times its `rate_factor`; tanh gates form a group of
    their own. Under `muon` so do the hidden weights. Parts with settings of their own have groups
    of their own.

    Args:
        parts: of the model (training/stages.py); for `config.parts`.
    Raises:
        UserError: `config.parts` names a part of which nothing is trained; `state: 8bit`, and
            parameters are sharded.
    """
    modules = list(modules)
    hidden = _hidden_weights(modules) if config.kind == "muon" else set()
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    gates = _gates(modules)
    apart = {name: _part_parameters(name, parts or {}) for name in config.parts}
    rest = [p for p in trained if not any(p in members for members in apart.values())]
    groups = _groups(rest, hidden, gates, config, PartOptimConfig())
    for name, settings in config.parts.items():
        members = [p for p in trained if p in apart[name]]
        if not members:
            raise UserError(f"optim.parts.{name} is set, and nothing of that part is trained here")
        groups += _groups(members, hidden, gates, config, settings)
    if config.state != "fp32":
        return CompactAdamW(groups, config.learning_rate, config.betas, config.eps, config.state)
    optimizer = Muon if config.kind == "muon" else torch.optim.AdamW
    return optimizer(
        groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True
    )


def _part_parameters(
    name: PartName, parts: Mapping[Part, Mapping[str, nn.Parameter]]
) -> set[nn.Parameter]:
    """The parameters of a part, and of what stands in for it: `decoder LoRA` is of the decoder."""
    wanted = name.replace("_", "-")
    return {
        parameter
        for part, parameters in parts.items()
        if part.partition(" ")[0] == wanted
        for parameter in parameters.values()
    }


def _groups(
    trained: list[nn.Parameter],
    hidden: set[Tensor],
    gates: set[Tensor],
    config: OptimConfig,
    settings: PartOptimConfig,
) -> list[dict[str, Any]]:
    """The groups of parameters with the same settings."""
    factor = (settings.learning_rate or config.learning_rate) / config.learning_rate
    decay = config.weight_decay if settings.weight_decay is None else settings.weight_decay
    vectors = [p for p in trained if p.dim() < 2 and p not in gates]
    matrices = [p for p in trained if p.dim() >= 2 and p not in hidden]
    groups = [
        _group(matrices, decay, factor),
        _group(vectors, rate_factor=factor),
        _group([p for p in trained if p in gates], rate_factor=factor * config.gate_rate_factor),
    ]
    if config.kind == "muon":
        weights = [p for p in trained if p in hidden]
        groups.append(_group(weights, decay, factor, orthogonal=True))
    return groups


def _group(
    parameters: list[nn.Parameter],
    decay: float = 0.0,
    rate_factor: float = 1.0,
    orthogonal: bool = False,
) -> dict[str, Any]:
    return {
        "params": parameters,
        "weight_decay": decay,
        "rate_factor": rate_factor,
        "orthogonal": orthogonal,
    }


def _hidden_weights(modules: Iterable[nn.Module]) -> set[Tensor]:
    """Weights of linear layers and convolutions; embeddings and the decoder's output stay out."""
    return {
        layer.weight
        for module in modules
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d) and name != "lm_head"
    }


def _gates(modules: Iterable[nn.Module]) -> set[Tensor]:
    return {
        parameter
        for module in modules
        for name, parameter in module.named_parameters()
        if parameter.shape == (1,) and "gate" in name.rpartition(".")[2]
    }


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
