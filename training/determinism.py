"""The same arithmetic in the same order in every run of the same machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# https://docs.nvidia.com/cuda/cublas/#results-reproducibility
CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
CUBLAS_WORKSPACE = ":4096:8"


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within this context torch computes by deterministic kernels only, if that is wanted.

    It costs speed on a GPU; an operation that has no such kernel raises. cuBLAS reads its variable
    when it is first used: let no CUDA computation come before.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault(CUBLAS_VARIABLE, CUBLAS_WORKSPACE)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
