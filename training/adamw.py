"""AdamW whose two moments take less memory: in bf16, or in 8 bits.

The arithmetic is that of torch.optim.AdamW in float32, a piece of a parameter at a time; the
moments are rounded when they are put back.

bf16: rounded up or down at random, with the odds that make the mean right. To the nearest, a
    second moment that decays by less than half of a last place would never decay.
8bit: https://arxiv.org/abs/2110.02861: blocks of 256 values share a scale, their largest, and a
    value is one of 256 steps that lie closer towards zero. Parameters of fewer than 4,096 values,
    or of no whole number of blocks, keep float32.

(torchao's AdamW8bit does the same. It compiles its step for every shape, takes no plain number as
the learning rate, and keeps tensors that safetensors cannot hold; and where it is installed,
transformers imports all of it.)
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from vlm.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names; the first has a sign
BLOCK = 256
MIN_BLOCKED_VALUES = 4096
SMALLEST_SCALE = 1e-12  # a block of zeros has one too
# Values of a parameter that are in float32 at once, some five times over.
PIECE = 2**24


class CompactAdamW(torch.optim.Optimizer):
    """AdamW with moments of `kind`.

    Raises:
        UserError: 8 bits are wanted, and parameters are sharded.
    """

    def __init__(
        self,
        groups: Iterable[Mapping[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        kind: Literal["bf16", "8bit"],
    ) -> None:
        super().__init__([dict(group) for group in groups], {"lr": lr, "betas": betas, "eps": eps})
        self.kind = kind
        parameters = [p for group in self.param_groups for p in group["params"]]
        if kind == "8bit" and any(isinstance(p, DTensor) for p in parameters):
            raise UserError(
                "optim.state is 8bit, whose blocks cannot be sharded; set optim.state=bf16"
            )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore; torch's own would make every moment float32, as the parameters are."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            for moment in MOMENTS:
                state[moment] = state[moment].to(self._dtype(parameter))

    def _dtype(self, parameter: Tensor) -> torch.dtype:
        if self.kind == "bf16":
            return torch.bfloat16
        blocked = parameter.numel() >= MIN_BLOCKED_VALUES and parameter.numel() % BLOCK == 0
        return torch.uint8 if blocked else torch.float32

    def _update(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state.update(self._new_moments(parameter))
        state["step"] += 1
        step = int(state["step"])
        gradient = parameter.grad
        assert gradient is not None
        weights, gradients = _flat(parameter), _flat(gradient)
        moments = {name: _flat(tensor) for name, tensor in state.items() if name != "step"}
        for start in range(0, len(weights), PIECE):
            piece = slice(start, start + PIECE)
            blocks = slice(start // BLOCK, (start + PIECE) // BLOCK)
            cut = {
                name: tensor[blocks if name.endswith("_scale") else piece]
                for name, tensor in moments.items()
            }
            first, second = (_read(cut, name) for name in MOMENTS)
            _adamw(weights[piece], gradients[piece].float(), first, second, step, group)
            for name, moment in zip(MOMENTS, (first, second), strict=True):
                _write(cut, name, moment)

    def _new_moments(self, parameter: Tensor) -> dict[str, Tensor]:
        dtype = self._dtype(parameter)
        moments = {name: torch.zeros_like(parameter, dtype=dtype) for name in MOMENTS}
        if dtype == torch.uint8:
            for name in MOMENTS:
                moments[name].fill_(int(torch.searchsorted(_steps(name), 0.0)))
                scales = parameter.new_zeros(parameter.numel() // BLOCK, dtype=torch.float32)
                moments[f"{name}_scale"] = scales
        return moments


def round_at_random(values: Tensor) -> Tensor:
    """Round float32 to bf16, up or down at random, so that the mean is right."""
    bits = values.view(torch.int32)
    # bf16 is float32 without its last 16 bits: what is added carries into those kept.
    noise = torch.randint_like(bits, 0, 1 << 16)
    return ((bits + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


def _adamw(
    weights: Tensor,
    gradients: Tensor,
    first: Tensor,
    second: Tensor,
    step: int,
    group: Mapping[str, Any],
) -> None:
    """Update weights and float32 moments in place; https://arxiv.org/abs/1711.05101, algorithm 2.

    In torch's order of operations.
    """
    rate, (beta1, beta2) = group["lr"], group["betas"]
    first.lerp_(gradients, 1 - beta1)
    second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
    denominator = (second.sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
    weights.mul_(1 - rate * group["weight_decay"])
    weights.add_(first / denominator, alpha=-rate / (1 - beta1**step))


def _read(moments: Mapping[str, Tensor], name: str) -> Tensor:
    """A moment as float32 that may be changed."""
    values = moments[name]
    if values.dtype != torch.uint8:
        return values.to(torch.float32, copy=True)
    blocks = _steps(name).to(values.device)[values.int()].view(-1, BLOCK)
    return (blocks * moments[f"{name}_scale"].unsqueeze(1)).view(-1)


def _write(moments: Mapping[str, Tensor], name: str, moment: Tensor) -> None:
    values = moments[name]
    if values.dtype == torch.uint8:
        blocks = moment.view(-1, BLOCK)
        scale = blocks.abs().amax(dim=1).clamp(min=SMALLEST_SCALE)
        steps = _steps(name).to(values.device)
        middles = (steps[1:] + steps[:-1]) / 2
        values.copy_(torch.bucketize((blocks / scale.unsqueeze(1)).view(-1), middles))
        moments[f"{name}_scale"].copy_(scale)
    else:
        values.copy_(round_at_random(moment) if values.dtype == torch.bfloat16 else moment)


def _flat(tensor: Tensor) -> Tensor:
    """All values in one axis; of sharded tensors, those of this rank."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach().view(-1)


@cache
def _steps(name: str) -> Tensor:
    """The 256 values that a moment may have in units of its scale, ascending.

    Between powers of ten from 1e-7 to 1, ever more of them, evenly; and 0 and 1.
    """
    signed = name == MOMENTS[0]
    positive = []
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (exponent + (not signed)) + 1)
        positive.append((edges[1:] + edges[:-1]) / 2 * 10.0 ** (exponent - 6))
    negative = [-values for values in positive] if signed else []
    return torch.cat([*positive, *negative, torch.tensor([0.0, 1.0])]).sort().values
