"""Out of memory, in words that help."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from vlm.errors import UserError

# What torch says where it has no exception of its own for that: on the host, and in cuBLAS.
MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "bad allocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


@contextmanager
def memory_advice(
    step: int, batch: Callable[[], str], checkpoint: Callable[[], Path | None]
) -> Iterator[None]:
    """Turn "out of memory" into what was computed, what can be changed, and what is saved.

    Args:
        batch: says what the step is about.
        checkpoint: the last one.
    Raises:
        UserError: in place of torch's error.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        problem: Exception = error
    except RuntimeError as error:
        if not any(message in str(error) for message in MESSAGES):
            raise
        problem = error
    else:
        return
    saved = checkpoint()
    raise UserError(
        f"out of memory in step {step} ({batch()}): {str(problem).splitlines()[0]}; lower "
        "data.batch_samples or data.batch_tokens (and raise batches_per_step), bound the pictures "
        "with data.batch_tiles, or recompute blocks (memory.recompute); "
        + (f"the last checkpoint is {saved}" if saved else "there is no checkpoint yet")
    ) from problem
