"""The projector: vision features to the decoder's width."""

from torch import Tensor, nn

from projector.config import ProjectorConfig


class Projector(nn.Module):
    """Map (..., input_size) vision features to (..., output_size)."""

    def __init__(self, config: ProjectorConfig, input_size: int, output_size: int) -> None:
        super().__init__()
        if config.kind == "linear":
            self.layers = nn.Sequential(nn.Linear(input_size, output_size))
        else:
            hidden_size = config.hidden_size or output_size
            self.layers = nn.Sequential(
                nn.Linear(input_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, output_size)
            )
        self.init_weights()

    def init_weights(self) -> None:
        """Draw every weight anew, preserving variance; biases are zero."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Project the last axis; the others pass through."""
        projected: Tensor = self.layers(features)
        return projected
