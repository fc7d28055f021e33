"""Batches arrive in order, with the state behind each, however far the loader has read ahead."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from data.prefetch import Prefetch, map_tensors
from vlm.errors import UserError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    keys: tuple[str, ...]
    pixels: Tensor
    parts: tuple[Tensor, ...] = ()


class Numbers:
    """A loader of batches 0, 1, ...; its state is the number of the next, as a loader's is."""

    def __init__(self, stop: int, error: Exception | None = None) -> None:
        self.state, self.stop, self.error = 0, stop, error

    def batches(self) -> Iterator[Batch]:
        while self.state < self.stop:
            number = self.state
            self.state += 1
            yield Batch((str(number),), torch.tensor([number]), (torch.tensor(number),))
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("num_ahead", [0, 1, 3])
def test_batches_come_in_order_each_with_the_state_behind_it(num_ahead: int) -> None:
    prefetch = Prefetch(Numbers(20), CPU, num_ahead)
    assert prefetch.state == 0 or num_ahead
    for number, staged in enumerate(prefetch):
        assert staged.host.keys == (str(number),) and staged.on_device.pixels.item() == number
        assert prefetch.state == number + 1
    assert prefetch.state == 20


def test_on_a_cpu_nothing_runs_ahead_and_nothing_is_copied() -> None:
    source = Numbers(3)
    staged = next(Prefetch(source, CPU))
    assert source.state == 1 and staged.on_device.pixels is staged.host.pixels
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}


def test_a_bounded_number_of_batches_is_read_ahead_until_closed() -> None:
    source = Numbers(100)
    prefetch = Prefetch(source, CPU, 2)
    assert source.state == 0  # nothing is read before the first batch is asked for
    next(prefetch)
    deadline = time.monotonic() + 10
    while source.state < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert source.state == 4 and prefetch.state == 1  # one given, two ready, one that waits
    prefetch.close()
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("num_ahead", [0, 2])
def test_an_error_of_the_loader_comes_after_the_batches_before_it(num_ahead: int) -> None:
    prefetch = Prefetch(Numbers(2, UserError("too many bad samples")), CPU, num_ahead)
    assert [next(prefetch).host.keys for _ in range(2)] == [("0",), ("1",)]
    with pytest.raises(UserError, match="too many bad samples"):
        next(prefetch)


def test_every_tensor_of_a_batch_is_mapped_and_the_rest_is_kept() -> None:
    batch = Batch(("a", "b"), torch.ones(2), (torch.zeros(1), torch.ones(1)))
    mapped = map_tensors(batch, lambda tensor: tensor + 1)
    assert mapped.keys == batch.keys and mapped.pixels.tolist() == [2, 2]
    assert [part.item() for part in mapped.parts] == [1, 2]


@pytest.mark.gpu
def test_on_cuda_batches_are_pinned_copied_ahead_and_equal() -> None:
    device = torch.device("cuda")
    for number, staged in enumerate(Prefetch(Numbers(50), device)):
        torch.cuda._sleep(1_000_000)  # the copies behind it are made meanwhile
        assert staged.host.pixels.is_pinned() and staged.on_device.pixels.device.type == "cuda"
        assert staged.on_device.pixels.item() == number == staged.on_device.parts[0].item()
