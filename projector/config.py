"""Configuration of the projector."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, PositiveInt


class ProjectorConfig(BaseModel):
    """`mlp` is Linear-GELU-Linear; `linear` is the single layer of Meta's checkpoints.

    `hidden_size` is the width between the two linears; None means the output's width.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["mlp", "linear"] = "mlp"
    hidden_size: PositiveInt | None = None
