from collections.abc import Iterator

import pytest
import torch

from vlm.cores import leave_a_core

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def three_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_a_core_is_left_beside_a_model_on_the_cpu_and_one_kept() -> None:
    for expected in (2, 1, 1):
        leave_a_core(CPU)
        assert torch.get_num_threads() == expected


def test_a_gpu_and_a_number_of_the_users_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_a_core(CUDA)
    assert torch.get_num_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    leave_a_core(CPU)
    assert torch.get_num_threads() == 3
