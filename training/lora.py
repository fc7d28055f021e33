"""Adapters on a frozen base, put there by peft; the gates of cross-attention learn with them."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from training.four_bits import hold_in_four_bits, saved_bytes
from vlm.adapters.config import LoraConfig
from vlm.adapters.folder import peft_config
from vlm.adapters.layers import MATRIX, adapted_layers
from vlm.model import VisionLanguageModel

Making = Callable[[], AbstractContextManager[None]]
# What peft calls an adapter that is the only one.
NAME = "default"


def set_dtypes(modules: Iterable[nn.Module], config: LoraConfig) -> None:
    """Give the weights of a base, which need have no numbers yet, the dtypes they are held in.

    Vectors and gates are float32 in any case.
    """
    if config.base_weights == "float32":
        return
    for module in (module for root in modules for module in root.modules()):
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1:
                setattr(module, name, nn.Parameter(parameter.detach().to(torch.bfloat16)))


def add_adapters(
    model: VisionLanguageModel, config: LoraConfig, making: Making | None = None
) -> tuple[str, ...]:
    """Put adapters onto a base that has its weights; return what there are, a line per target set.

    The weight of an adapted layer is then `base_layer.weight` below the layer's name. An adapter
    adds nothing until it has learnt. Adapters are float32, whatever the base is held in.

    Args:
        making: gives the context in which the model was made without numbers, if it was. There are
            none then to make 4 bits of; a line says what these would save.
    """
    from peft import inject_adapter_in_model  # takes seconds, and few runs have adapters

    layers = adapted_layers(model, config)
    notes = []
    if config.base_weights == "nf4" and making is not None:
        saved = saved_bytes(model.decoder.layers) / 1e6
        notes = [f"nf4: counted as bfloat16 here; 4 bits take {saved:,.0f} MB of weights less"]
    elif config.base_weights == "nf4":
        hold_in_four_bits(model.decoder.layers)
        host: Any = model
        host.is_loaded_in_4bit = True  # where peft looks for it
    inject_adapter_in_model(peft_config(layers), model, NAME)
    for name, target in layers.items():
        layer: Any = model.get_submodule(name)
        for matrix in (layer.lora_A[NAME], layer.lora_B[NAME]):
            with nullcontext() if making is None else making():
                start = matrix.weight if making is None else torch.empty(matrix.weight.shape)
                matrix.weight = nn.Parameter(start.float())
        # Where dtypes differ autocast sees to it; a copy of the inputs in float32 is for nothing.
        layer.cast_input_dtype_enabled = False
        if target.dropout:
            layer.lora_dropout[NAME] = nn.Dropout(target.dropout)
    for target_set, target in config.targets.items():
        count = sum(found is target for found in layers.values())
        notes.append(
            f"{target_set}: adapters of rank {target.rank}, times {target.scale:g}, "
            f"on {count} layers"
        )
    return tuple(notes)


def adapter_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """What an adapter consists of, by the names of vlm/adapters/layers.py."""
    return {
        adapter_name(f"{component}.{name}"): parameter
        for component, module in modules.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def adapter_name(name: str) -> str:
    """Return an adapter tensor's name in vlm/adapters/layers.py; peft's in a module has its own."""
    return name.replace(f".{NAME}.weight", ".weight")


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
