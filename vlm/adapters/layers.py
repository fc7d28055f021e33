"""Which of a model's layers have adapters, and what an adapter's tensors are called."""

from collections.abc import Iterator

from torch import nn

from vlm.adapters.config import LoraConfig, LoraTarget, TargetSet
from vlm.decoder.config import DecoderConfig
from vlm.errors import UserError
from vlm.model import VisionLanguageModel
from vlm.weights.comparison import Shape

GATES = ("attn_gate", "mlp_gate")
# Between a layer's name and `A.weight` (rank, in) or `B.weight` (out, rank) of its adapter.
MATRIX = ".lora_"


def adapted_layers(model: VisionLanguageModel, config: LoraConfig) -> dict[str, LoraTarget]:
    """Return the linear layers that have adapters, by their names in a model without any.

    Raises:
        UserError: the encoder is a module of timm, whose layers may not be called but read.
    """
    tower = model.config.vision.tower
    if config.encoder is not None and tower is not None:
        raise UserError(
            f"lora.encoder adapts our own vision layers; this model's are timm's {tower.name}: "
            "leave lora.encoder out"
        )
    targets = config.targets
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            target_set = _target_set(name, model.config.decoder)
            if target_set in targets:
                layers[name] = targets[target_set]
    return layers


def gate_names(config: DecoderConfig) -> list[str]:
    """The gates of the cross-attention blocks, which are trained beside the adapters."""
    layers = config.cross_attention_layers
    return [f"decoder.layers.{layer}.{gate}" for layer in layers for gate in GATES]


def adapter_shapes(model: VisionLanguageModel, config: LoraConfig) -> dict[str, Shape]:
    """Names and shapes of everything an adapter consists of: pairs of matrices, and gates."""
    return dict(_shapes(model, config))


def _shapes(model: VisionLanguageModel, config: LoraConfig) -> Iterator[tuple[str, Shape]]:
    for name, target in adapted_layers(model, config).items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        yield f"{name}{MATRIX}A.weight", (target.rank, layer.in_features)
        yield f"{name}{MATRIX}B.weight", (layer.out_features, target.rank)
    for name in gate_names(model.config.decoder):
        yield name, (1,)


def _target_set(layer: str, config: DecoderConfig) -> TargetSet | None:
    """The target set of a linear layer; the decoder's output layer is in none."""
    component, *path = layer.split(".")
    if component == "encoder":
        return "encoder"
    if component == "projector":
        return "projector"
    if path[0] != "layers":
        return None
    return "cross_attention" if int(path[1]) in config.cross_attention_layers else "decoder"
