"""Linear layers held in 4 bits, by bitsandbytes: NF4, its constants quantised once more.

https://arxiv.org/abs/2305.14314
"""

import torch
from torch import nn

from vlm.errors import UserError

# A scale for 64 values, 8 bits of its own, and a float32 scale for 256 of those.
BITS = 4 + 8 / 64 + 32 / (64 * 256)


def hold_in_four_bits(blocks: nn.Module) -> None:
    """Replace every linear layer below a module by one that holds its weight in 4 bits.

    It does so from the moment that it is moved to a device. The layers compute in bfloat16, biases
    included, and cannot be trained.

    Raises:
        UserError: bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise UserError(
            "lora.base_weights nf4 needs bitsandbytes, which is not installed: "
            "pip install 'vlm[quant]', or set lora.base_weights to bfloat16"
        ) from error
    for parent in list(blocks.modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, nn.Linear):
                continue
            with torch.device("meta"):  # only the new layer's form is wanted
                smaller = Linear4bit(
                    layer.in_features,
                    layer.out_features,
                    bias=layer.bias is not None,
                    compute_dtype=torch.bfloat16,
                    quant_type="nf4",
                )
            smaller.weight = Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
            smaller.bias = layer.bias
            # Its other form for CPUs takes whole blocks of inputs only, and is for inference.
            smaller.support_avx512bf16_for_cpu = False
            setattr(parent, name, smaller)


def saved_bytes(blocks: nn.Module) -> float:
    """How much less the linear layers below a module take in 4 bits than in bfloat16."""
    layers = [layer for layer in blocks.modules() if isinstance(layer, nn.Linear)]
    return sum(layer.weight.numel() for layer in layers) * (16 - BITS) / 8
