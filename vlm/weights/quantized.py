"""Weights rounded to 8 or 4 bits when a model is loaded, held by torchao.

Only weights of linear layers are rounded; what those layers are given and give keeps its dtype.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlm.errors import UserError
from vlm.model import VisionLanguageModel

Bits = Literal["int8", "int4"]
KINDS: tuple[Bits, ...] = ("int8", "int4")
# What can be rounded, a set of linear layers each.
PARTS = {
    "decoder": "decoder.layers",
    "output": "decoder.lm_head",
    "projector": "projector",
    "encoder": "encoder",
}
# A scale and a zero for so many weights of a row; the largest that divides every row is taken.
GROUP_SIZES = (128, 64, 32)
CPU_ROWS = 16  # its kernel takes so many rows of a weight at a time


@dataclass(frozen=True)
class Saving:
    """Bytes of the rounded layers' weights, before and after."""

    before: int
    after: int


def parse_quantization(given: str | Sequence[str] | Mapping[str, str] | None) -> dict[str, Bits]:
    """Return which parts are rounded how, from `int4` (the decoder), `PART=int8`, or a mapping.

    Raises:
        UserError: there is no such part or kind, or a part is named twice.
    """
    if given is None:
        return {}
    if isinstance(given, Mapping):
        pairs = list(given.items())
    else:
        words = [given] if isinstance(given, str) else given
        pairs = [
            (part, kind) if equals else ("decoder", part)
            for part, equals, kind in (word.partition("=") for word in words)
        ]
    found: dict[str, Bits] = {}
    for part, kind in pairs:
        known = next((known for known in KINDS if known == kind), None)
        if part not in PARTS or known is None or part in found:
            raise UserError(
                f"quantize is {given!r}, needed: {' or '.join(KINDS)} for the decoder, or "
                f"PART=KIND once a part; the parts are {', '.join(PARTS)}"
            )
        found[part] = known
    return found


def quantize(network: VisionLanguageModel, parts: Mapping[str, Bits]) -> Saving:
    """Round the weights of parts of a network, in place.

    Raises:
        UserError: torchao is not installed, a part has no linear layer of its own, or its weights
            are not of a dtype and a shape that can be held in 4 bits.
    """
    try:
        from torchao.quantization import quantize_
    except ImportError as error:
        raise UserError(
            "quantize needs torchao, which is not installed: pip install 'vlm[quant]'"
        ) from error
    before = after = 0
    for part, kind in parts.items():
        layers = dict(_linear_layers(network, PARTS[part]))
        if not layers:
            raise UserError(f"the {part} has no linear layer of its own to be held in {kind}")
        config = _int8() if kind == "int8" else _int4(layers)
        for layer in layers.values():
            before += layer.weight.nbytes
            quantize_(layer, config)
            after += stored_bytes(layer.weight)
    return Saving(before, after)


def _int8() -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig()


def _int4(layers: Mapping[str, nn.Linear]) -> Any:
    """How these layers are held in 4 bits: packed as the kernels of their device read them."""
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import Int4WeightOnlyConfig

    on_cpu = next(iter(layers.values())).weight.device.type == "cpu"
    for name, layer in layers.items():
        if layer.weight.dtype != torch.bfloat16:  # others are refused, or a hundred times as slow
            raise UserError(
                f"int4 needs weights of bfloat16, and {name} has {layer.weight.dtype}; "
                "set dtype to bfloat16, or leave it out"
            )
        rows, columns = layer.weight.shape
        if columns % GROUP_SIZES[-1] or (on_cpu and rows % CPU_ROWS):
            raise UserError(
                f"int4 needs a multiple of {GROUP_SIZES[-1]} inputs and of {CPU_ROWS} outputs, and "
                f"{name} has {columns} and {rows}; use int8"
            )
    size = next(g for g in GROUP_SIZES if not any(la.in_features % g for la in layers.values()))
    if on_cpu:
        return PrototypeInt4WeightOnlyConfig(group_size=size)
    return Int4WeightOnlyConfig(group_size=size, int4_packing_format="tile_packed_to_4d")


def stored_bytes(weight: Tensor) -> int:
    """Bytes that a weight takes, with what torchao keeps beside it."""
    if not hasattr(weight, "__tensor_flatten__"):
        return weight.nbytes
    names, _ = weight.__tensor_flatten__()
    return sum(stored_bytes(getattr(weight, name)) for name in names)


def _linear_layers(network: VisionLanguageModel, below: str) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and (name == below or name.startswith(f"{below}.")):
            yield name, module
