"""What each stage trains, and what it starts from, as data."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from torch import nn

from training.config import StageName, TrainConfig
from vlm.adapters.layers import GATES, MATRIX
from vlm.decoder.stack import CrossAttentionBlock, Decoder

Part = Literal[
    "encoder",
    "text tower",
    "contrastive head",
    "projector",
    "cross-attention",
    "decoder",
    "cross-attention gates",
    "encoder LoRA",
    "projector LoRA",
    "cross-attention LoRA",
    "decoder LoRA",
]
# The adapters on a part's layers.
ADAPTERS: Mapping[Part, Part] = MappingProxyType(
    {
        "encoder": "encoder LoRA",
        "projector": "projector LoRA",
        "cross-attention": "cross-attention LoRA",
        "decoder": "decoder LoRA",
    }
)


@dataclass(frozen=True)
class Stage:
    """One stage.

    trained: the parts that learn; every other part is frozen.
    components: what its model folder holds.
    parents: the keys of `init_from` that it needs.
    options: further keys of `init_from` that it takes.
    """

    trained: tuple[Part, ...]
    components: tuple[str, ...]
    parents: tuple[str, ...]
    options: tuple[str, ...]
    objective: str


STAGES: Mapping[StageName, Stage] = MappingProxyType(
    {
        "text": Stage(
            trained=("decoder",),
            components=("decoder",),
            parents=(),
            options=("tokenizer",),
            objective="next token on every token, pictures left out",
        ),
        "encoder": Stage(
            trained=("encoder", "text tower", "contrastive head"),
            components=("encoder", "text_tower", "contrastive_head"),
            parents=(),
            options=("tokenizer", "encoder"),
            objective="image-text contrastive",
        ),
        "align": Stage(
            trained=("projector", "cross-attention"),
            components=("encoder", "projector", "decoder"),
            parents=("decoder", "encoder"),
            options=(),
            objective="next token on the assistant's turns",
        ),
        "finetune": Stage(
            trained=("encoder", "projector", "cross-attention", "decoder"),
            components=("encoder", "projector", "decoder"),
            parents=("model",),
            options=(),
            objective="next token on the assistant's turns",
        ),
    }
)

# The finetune stage with adapters. Its folder holds no component of a model.
LORA = replace(
    STAGES["finetune"], trained=("cross-attention gates", *ADAPTERS.values()), components=()
)


def stage_of(config: TrainConfig) -> Stage:
    """What a run trains and starts from."""
    return STAGES[config.stage] if config.lora is None else LORA


def parts_of(components: Mapping[str, nn.Module]) -> dict[Part, dict[str, nn.Parameter]]:
    """Sort the parameters of components into the parts that stages train or freeze.

    The decoder's cross-attention blocks (with their gates) are a part of their own. So are
    adapters, and with them the gates.
    """
    names: dict[str, Part] = {
        "encoder": "encoder",
        "projector": "projector",
        "decoder": "decoder",
        "text_tower": "text tower",
        "contrastive_head": "contrastive head",
    }
    adapted = any(MATRIX in name for m in components.values() for name, _ in m.named_parameters())
    parts: dict[Part, dict[str, nn.Parameter]] = {}
    for component, module in components.items():
        crossing: set[nn.Parameter] = set()
        if isinstance(module, Decoder):
            blocks = [b for b in module.layers if isinstance(b, CrossAttentionBlock)]
            crossing = {parameter for block in blocks for parameter in block.parameters()}
        for name, parameter in module.named_parameters():
            part = "cross-attention" if parameter in crossing else names[component]
            if MATRIX in name:
                part = ADAPTERS[part]
            elif adapted and parameter in crossing and name.endswith(GATES):
                part = "cross-attention gates"
            parts.setdefault(part, {})[f"{component}.{name}"] = parameter
    return parts


def freeze(stage: Stage, parts: Mapping[Part, Mapping[str, nn.Parameter]]) -> None:
    """Set `requires_grad` of every parameter by the stage's table."""
    for part, parameters in parts.items():
        for parameter in parameters.values():
            parameter.requires_grad_(part in stage.trained)
