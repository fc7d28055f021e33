"""Adapters on a frozen base, put there by peft; the gates of cross-attention learn with them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from training.four_bits import hold_in_four_bits
from vlm.adapters.config import LoraConfig
from vlm.adapters.folder import peft_config
from vlm.adapters.layers import MATRIX, adapted_layers
from vlm.config import VLMConfig
from vlm.model import VisionLanguageModel

# What peft calls an adapter that is the only one.
NAME = "default"


def empty_base(config: VLMConfig, image_token_id: int, lora: LoraConfig) -> VisionLanguageModel:
    """Return a model that has no weights yet, on the CPU, in the dtypes in which it holds a base.

    Vectors and gates are float32 in any case.
    """
    with torch.device("meta"):
        model = VisionLanguageModel(config, image_token_id)
    if lora.base_weights != "float32":
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data = parameter.data.to(torch.bfloat16)
    return model.to_empty(device="cpu")


def add_adapters(model: VisionLanguageModel, config: LoraConfig) -> tuple[str, ...]:
    """Put adapters onto a base that has its weights; return what there are, a line per target set.

    The weight of an adapted layer is then `base_layer.weight` below the layer's name. An adapter
    adds nothing until it has learnt. Adapters are float32, whatever the base is held in.
    """
    from peft import inject_adapter_in_model  # takes seconds, and few runs have adapters

    layers = adapted_layers(model, config)
    if config.base_weights == "nf4":
        hold_in_four_bits(model.decoder.layers)
        host: Any = model
        host.is_loaded_in_4bit = True  # where peft looks for it
    inject_adapter_in_model(peft_config(layers), model, NAME)
    for name, target in layers.items():
        layer: Any = model.get_submodule(name)
        layer.lora_A.float()
        layer.lora_B.float()
        # Where dtypes differ autocast sees to it; a copy of the inputs in float32 is for nothing.
        layer.cast_input_dtype_enabled = False
        if target.dropout:
            layer.lora_dropout[NAME] = nn.Dropout(target.dropout)
    return tuple(
        f"{target_set}: adapters of rank {target.rank}, times {target.scale:g}, on "
        f"{sum(found is target for found in layers.values())} layers"
        for target_set, target in config.targets.items()
    )


def adapter_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """What an adapter consists of, by the names of vlm/adapters/layers.py."""
    return {
        f"{component}.{name}".replace(f".{NAME}.weight", ".weight"): parameter
        for component, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def changing_tensors(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, Tensor]]:
    """What a run may change of each module, by name in its state dict; a checkpoint holds this.

    That is everything, or, with adapters, what is trained: the base is known by its hash.
    """
    adapted = any(MATRIX in name for m in modules.values() for name, _ in m.named_parameters())
    return {
        component: {
            name: tensor
            for name, tensor in module.state_dict(keep_vars=True).items()
            if tensor.requires_grad or not adapted
        }
        for component, module in modules.items()
    }
