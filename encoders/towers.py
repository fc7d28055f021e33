"""A vision transformer of timm in place of the local layers, as timm builds it.

Axes: `T` tiles, `N` tokens of a tile (class and register tokens, then patches row by row), `D`
width.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from encoders.config import VisionConfig

# What a transformer over one sequence of tokens has in timm.
NEEDED = (
    *("embed_dim", "num_prefix_tokens", "patch_embed", "blocks", "fc_norm"),
    *("forward_features", "forward_intermediates", "set_input_size"),
)


class TimmTower(nn.Module):
    """timm's model without its head, for pictures as large as a tile."""

    def __init__(self, config: VisionConfig) -> None:
        """Build the model with fresh weights.

        Raises:
            ValueError: timm cannot build it, it is no transformer over one sequence of tokens, or
                its shape is not the configuration's.
        """
        super().__init__()
        assert config.tower is not None
        size = {"img_size": config.tile_size_px}
        self.trunk = build_trunk(config.tower.name, {**config.tower.arguments, **size})
        shape = trunk_shape(self.trunk)
        wrong = [
            f"{field} is {getattr(config, field)}, needed: {value}"
            for field, value in shape.items()
            if getattr(config, field) != value
        ]
        if wrong:
            raise ValueError(f"tower {config.tower.name} of another shape: {'; '.join(wrong)}")

    def forward(
        self, pixels: Tensor, layers: Collection[int]
    ) -> tuple[Tensor, Mapping[int, Tensor]]:
        """Encode tiles.

        A norm that timm applies after pooling is applied to every token.

        Args:
            pixels: (T, 3, px, px), normalised.
            layers: which states to give beside the final one: 3 is the output of the third layer.
        Returns:
            The final state (T, N, D), and the states asked for.
        """
        if not layers:
            return self.trunk.fc_norm(self.trunk.forward_features(pixels)), {}
        outputs = sorted({layer - 1 for layer in layers})
        final, given = self.trunk.forward_intermediates(
            pixels, indices=outputs, return_prefix_tokens=True, output_fmt="NLC"
        )
        if self.trunk.num_prefix_tokens:  # timm gives patches and the tokens before them apart
            given = [torch.cat([prefix, patches], dim=1) for patches, prefix in given]
        states = {output + 1: state for output, state in zip(outputs, given, strict=True)}
        return self.trunk.fc_norm(final), states


def build_trunk(name: str, arguments: Mapping[str, Any]) -> Any:
    """Return timm's model without its head; all of its tensors are in its state dict.

    Raises:
        ValueError: there is no such model, it does not take the arguments, or it is no transformer
            over one sequence of tokens.
    """
    import timm  # takes seconds, and few encoders have a tower

    try:
        trunk: Any = timm.create_model(name, pretrained=False, **arguments)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"timm {timm.__version__} cannot build {name}: {error}") from error
    if not all(hasattr(trunk, part) for part in NEEDED):
        raise ValueError(
            f"timm's {name}, a {type(trunk).__name__}, is no transformer over one sequence of "
            "tokens; choose a ViT, DINO or EVA"
        )
    trunk.reset_classifier(0, "")
    # Some tables are made with the model and not saved by timm; here a model is its saved tensors.
    saved = set(trunk.state_dict())
    for full_name, buffer in list(trunk.named_buffers()):
        if full_name not in saved:
            owner, _, buffer_name = full_name.rpartition(".")
            trunk.get_submodule(owner).register_buffer(buffer_name, buffer)
    return trunk


def trunk_shape(trunk: Any) -> dict[str, int]:
    """Return the fields of `VisionConfig` that a timm model decides; tiles may be of any size."""
    patch_px, _ = trunk.patch_embed.patch_size
    return {
        "patch_size_px": patch_px,
        "hidden_size": trunk.embed_dim,
        "num_local_layers": len(trunk.blocks),
        "num_prefix_tokens": trunk.num_prefix_tokens,
    }
