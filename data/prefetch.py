"""Batches on their way to the device while the one before them is used.

On CUDA a thread takes batches from the loader, pins their memory and copies them on a stream of its
own, two ahead of the one in use. On a CPU there is nothing to copy, and nothing runs ahead.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

BatchT = TypeVar("BatchT")
StateT = TypeVar("StateT")
BatchT_co = TypeVar("BatchT_co", covariant=True)
StateT_co = TypeVar("StateT_co", covariant=True)

POLL_S = 0.1  # how often a thread with a batch to give looks whether anybody still wants it


class Source(Protocol[BatchT_co, StateT_co]):
    """A loader; `state` names the batch after the one given last."""

    @property
    def state(self) -> StateT_co: ...

    def batches(self) -> Iterator[BatchT_co]: ...


@dataclass(frozen=True)
class Staged(Generic[BatchT]):
    """A batch on the host, to be counted without waiting for the device, and on the device."""

    host: BatchT
    on_device: BatchT


class Prefetch(Generic[BatchT, StateT]):
    """Iterate over a loader's batches, staged on `device`.

    Args:
        num_ahead: batches that wait ready, beside one in the making; None is 1 on CUDA and 0
            elsewhere.
    """

    def __init__(
        self, source: Source[BatchT, StateT], device: torch.device, num_ahead: int | None = None
    ) -> None:
        if num_ahead is None:
            num_ahead = 1 if device.type == "cuda" else 0
        self.source = source
        self._given: StateT | None = None
        items = _stage(source, device)
        self._items = _run_ahead(items, num_ahead) if num_ahead else items
        self._device = device

    @property
    def state(self) -> StateT:
        """The state behind the batch given last, however far the loader has read ahead."""
        return self.source.state if self._given is None else self._given

    def __iter__(self) -> Iterator[Staged[BatchT]]:
        return self

    def __next__(self) -> Staged[BatchT]:
        item = next(self._items)
        self._given = item.state
        if item.copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(item.copied)
            # Its memory belongs to the copying stream, which must not use it again too early.
            map_tensors(item.batch.on_device, lambda tensor: _record(tensor, stream))
        return item.batch

    def close(self) -> None:
        """Stop reading ahead."""
        self._items.close()


@dataclass(frozen=True)
class _Item(Generic[BatchT, StateT]):
    """copied: happens on the device when the copy is complete."""

    batch: Staged[BatchT]
    state: StateT
    copied: "torch.cuda.Event | None"


def map_tensors(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch with every tensor of its dataclasses, tuples and lists replaced."""
    if isinstance(value, Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: map_tensors(getattr(value, f.name), change) for f in fields(value)}
        return replace(value, **changed)
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(item, change) for item in value)
    return value


def _stage(
    source: Source[BatchT, StateT], device: torch.device
) -> Generator[_Item[BatchT, StateT], None, None]:
    stream: torch.cuda.Stream | None = None
    if device.type == "cuda":
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch in source.batches():
        if stream is None:
            moved = map_tensors(batch, lambda tensor: tensor.to(device))
            yield _Item(Staged(batch, moved), source.state, None)
            continue
        pinned = map_tensors(batch, Tensor.pin_memory)
        with torch.cuda.stream(stream):
            moved = map_tensors(pinned, lambda tensor: tensor.to(device, non_blocking=True))
            copied = stream.record_event()
        yield _Item(Staged(pinned, moved), source.state, copied)


def _run_ahead(
    items: Iterator[_Item[BatchT, StateT]], num_ahead: int
) -> Generator[_Item[BatchT, StateT], None, None]:
    """Yield `items`, which a thread fetches ahead; its errors are raised here, in their place."""
    ready: queue.Queue[_Item[BatchT, StateT] | BaseException | None] = queue.Queue(num_ahead)
    unwanted = threading.Event()
    thread = threading.Thread(
        target=_fetch, args=(items, ready, unwanted), name="prefetch", daemon=True
    )
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        unwanted.set()
        thread.join()


def _fetch(items: Iterator[Any], ready: "queue.Queue[Any]", unwanted: threading.Event) -> None:
    last: BaseException | None = None
    try:
        for item in items:
            if not _put(item, ready, unwanted):
                return
    except BaseException as error:  # raised again by whoever waits for the item
        last = error
    _put(last, ready, unwanted)


def _put(item: Any, ready: "queue.Queue[Any]", unwanted: threading.Event) -> bool:
    """Put an item as soon as there is room; return False if nobody wants it any more."""
    while not unwanted.is_set():
        try:
            ready.put(item, timeout=POLL_S)
        except queue.Full:
            continue
        return True
    return False


def _record(tensor: Tensor, stream: "torch.cuda.Stream") -> Tensor:
    tensor.record_stream(stream)
    return tensor
