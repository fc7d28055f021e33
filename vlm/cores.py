"""How many of the machine's cores torch computes on, where something else runs beside it."""

import os

import torch


def leave_a_core(device: torch.device) -> None:
    """Compute on all cores but one, where a model on the CPU shares them with a server.

    With none left for the event loop, torch's threads wait for one another whenever it runs, and a
    step takes several times as long (docs/log.md). The user's OMP_NUM_THREADS stands.
    """
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))
