"""A training step by shapes alone: how much memory it takes, without taking it.

The step is the real one, of the run's own objects, with two differences. Weights, pixels and what
is computed of them are torch's fake tensors: they have a shape, a dtype and a device, and no
numbers. Token ids, masks and counts are real, since shapes depend on them. Every storage that
appears and goes is counted, so the peak is that of the allocator but for what a kernel takes within
itself.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from data.prefetch import map_tensors
from encoders.vit import VisionEncoder
from training.memory import blocks_of
from training.objectives import Objective
from vlm.decoder.stack import Decoder

aten = torch.ops.aten
# Indexing by a mask has a shape that depends on the mask.
INDEXING = (aten.index.Tensor, aten.index_put.default, aten._unsafe_index_put.default)
INDEXING_IN_PLACE = (aten.index_put_.default, aten._index_put_impl_.default)
# The caching allocator of CUDA gives out memory in units of this.
CUDA_UNIT_BYTES = 512


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step on one device.

    weights, gradients, optimizer: of all parameters, of the trained ones, and of their states.
    activations: what waits for the backward pass at the end of the forward pass.
    peak: the most that is alive at once, everything counted.
    gathered: weights that are whole at once where they are sharded: those outside of blocks, those
        of a block, of the next one, and a block's gradients.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    gathered: int

    def on_each_of(self, num_devices: int, sharded: bool) -> int:
        """Estimate the peak on each of several devices, every one with such a batch.

        Whole copies (DDP) exchange gradients through buffers as large as these. Shards (FSDP) keep
        their part of weights, gradients and states, and gather weights block by block.
        """
        if num_devices == 1:
            return self.peak
        if not sharded:
            return self.peak + self.gradients
        held = self.weights + self.gradients + self.optimizer
        return held // num_devices + self.gathered + max(self.activations, self.peak - held)


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, count the bytes of the tensors that are alive on a device, and their peak."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device
        self.unit = CUDA_UNIT_BYTES if device.type == "cuda" else 1
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.count, result)
        return result

    def count(self, tensor: Tensor) -> Tensor:
        """Count a tensor's storage from now on until it is freed; return the tensor."""
        if tensor.device.type != self.device.type:
            return tensor
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            num_bytes = -(-storage.nbytes() // self.unit) * self.unit
            self._known.add(key)
            weakref.finalize(storage, self._free, key, num_bytes).atexit = False
            self.now += num_bytes
            self.peak = max(self.peak, self.now)
        return tensor

    def _free(self, key: int, num_bytes: int) -> None:
        self._known.remove(key)
        self.now -= num_bytes


class Rehearsal:
    """Makes modules without numbers, and runs a step with them."""

    def __init__(self) -> None:
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    @contextmanager
    def making(self, device: torch.device) -> Iterator[None]:
        """Within, tensors are made without numbers, on `device`."""
        with self.fake, torch.device(device):
            yield

    def step(
        self,
        objective: Objective[Any],
        modules: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        batch: Any,
        device: torch.device,
        precision: Callable[[], AbstractContextManager[Any]],
        num_batches: int = 1,
    ) -> StepMemory:
        """Run a step that has been run before, so that the optimizer has its states.

        Args:
            modules: what was made within `making`, frozen as the stage wants it.
            batch: real, on the host.
            precision: makes the context in which losses are computed.
            num_batches: of the step; more than two take what two do.
        """
        parameters = [p for module in modules.values() for p in module.parameters()]
        trained = [p for p in parameters if p.requires_grad]
        buffers = [b for module in modules.values() for b in module.buffers()]
        batch = self.place(batch, device)
        live = LiveMemory(device)
        for tensor in (*parameters, *buffers):
            live.count(tensor.detach())
        weights = live.now
        map_tensors(batch, live.count)
        with ByShape(), live:  # type: ignore[no-untyped-call]
            states = _make_states(optimizer, trained)
            live.peak = live.now
            for _ in range(min(num_batches, 2)):
                before = live.now
                with precision():
                    loss = objective.loss(batch).total
                activations = live.now - before
                if loss.requires_grad:
                    loss.backward()  # type: ignore[no-untyped-call]
                del loss
            gradients = sum(_num_bytes(p.grad) for p in trained if p.grad is not None)
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        gathered = _gathered_bytes(modules)
        return StepMemory(weights, gradients, states, activations, live.peak, gathered)

    def place(self, batch: Any, device: torch.device) -> Any:
        """Return a batch on a device: pixels and features without numbers; ids, masks with them."""

        def on_device(tensor: Tensor) -> Tensor:
            if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
                return tensor.to(device)
            with self.fake:
                return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)

        return map_tensors(batch, on_device)


def _make_states(optimizer: torch.optim.Optimizer, trained: list[nn.Parameter]) -> int:
    """Make the optimizer's states by a step without gradients' numbers; return their bytes."""
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return sum(_num_bytes(t) for state in optimizer.state.values() for t in state.values())


def _gathered_bytes(modules: Mapping[str, nn.Module]) -> int:
    total, largest = 0, 0
    for module in modules.values():
        total += sum(map(_num_bytes, module.parameters()))
        if isinstance(module, Decoder | VisionEncoder):
            sizes = [sum(map(_num_bytes, block.parameters())) for block in blocks_of(module)]
            total -= sum(sizes)
            largest = max(largest, *sizes)
    return total + 3 * largest


def _num_bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


class ByShape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within, fake and real tensors may meet where a shape depends on a real mask."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in INDEXING or func in INDEXING_IN_PLACE:
            args = (args[0], _places(args[1]), *args[2:])
        return func(*args, **(kwargs or {}))


def _places(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Indices with every mask replaced by the places where it is True."""
    places: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            places += index.nonzero(as_tuple=True)
        else:
            places.append(index)
    return places
