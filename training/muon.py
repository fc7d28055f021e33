"""Muon: momentum updates of weight matrices, made orthogonal; AdamW for everything else.

https://kellerjordan.github.io/posts/muon/; scaled to AdamW's learning rates as in
https://arxiv.org/abs/2502.16982, section 2.2.
"""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

MOMENTUM = 0.95
# Coefficients of the Newton-Schulz iteration and its steps, from the page above.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
# The root mean square of AdamW's updates, which the second source matches.
UPDATE_RMS = 0.2


class Muon(torch.optim.AdamW):
    """AdamW, but for the groups with `orthogonal: True`, whose weights are matrices or kernels.

    torch.optim.Muon always iterates in bf16, which processors without it take a hundred times
    longer for, and takes neither convolutions nor AdamW's groups.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            if group["orthogonal"]:
                self._step_matrices(group)
        super().step()  # it passes over parameters without a gradient

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.flatten(1).shape, []).append(parameter)
        for parameters in by_shape.values():
            updates = orthogonalise(torch.stack([whole(self._momentum(p)) for p in parameters]))
            scale = UPDATE_RMS * max(updates.shape[1:]) ** 0.5
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                update = share_of(parameter, update.view(parameter.shape))
                parameter.add_(update, alpha=-group["lr"] * scale)
                parameter.grad = None

    def _momentum(self, parameter: Tensor) -> Tensor:
        """Nesterov momentum of the gradient, sharded as that is."""
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)  # AdamW looks for it on restoring
            state["momentum"] = torch.zeros_like(gradient)
        state["step"] += 1
        average: Tensor = state["momentum"]
        average.lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(average, MOMENTUM)


def whole(update: Tensor) -> Tensor:
    """Return an update as a matrix, gathered from all ranks if it is sharded.

    Its singular values are those of the whole: every rank orthogonalises all of it.
    """
    return (update.full_tensor() if isinstance(update, DTensor) else update).flatten(1)


def share_of(parameter: Tensor, update: Tensor) -> Tensor:
    """Return the part of a whole update that belongs to this rank's part of a parameter."""
    if not isinstance(parameter, DTensor):
        return update
    # Every rank has the whole update, so none is sent.
    update = update.to(parameter.device)
    return distribute_tensor(
        update, parameter.device_mesh, parameter.placements, src_data_rank=None
    )


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices (n, rows, columns) close to 1; same shape and dtype.

    Five steps leave them between about 0.7 and 1.2. In bf16 on GPUs, else in float32.
    """
    a, b, c = NEWTON_SCHULZ
    dtype = torch.bfloat16 if matrices.is_cuda else torch.float32
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)
