"""How much of a GPU's arithmetic training uses: model FLOPs utilisation (MFU).

https://arxiv.org/abs/2204.02311, appendix B: the operations that the model asks for (`Flops.model`,
nothing that is computed twice) over what the device could have done in the time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from training.flops import StepFlops

# Dense bf16 products with float32 sums, operations a second, by what torch.cuda.get_device_name
# contains; the first that fits. From NVIDIA's data sheets of each (nvidia.com/en-us/data-center/),
# which mostly give twice as much, "with sparsity".
PEAK_FLOPS: Mapping[str, float] = MappingProxyType(
    {
        "GB200": 2.5e15,
        "B200": 2.25e15,
        "GH200": 989e12,
        "H200": 989e12,
        "H100 NVL": 835e12,
        "H100 PCIe": 756e12,
        "H100": 989e12,
        "A100": 312e12,
        "L40S": 362e12,
        "L4": 121e12,
        "A10": 125e12,
    }
)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return a GPU's operations a second; None where they are not known, and for other dtypes."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """Return the operations a second of the GPU that torch calls `name`."""
    words = name.replace("-", " ").split()
    for known, peak in PEAK_FLOPS.items():
        wanted = known.split()
        if all(word in words for word in wanted):
            return peak
    return None


@dataclass(frozen=True)
class Utilisation:
    """What the use of a device is measured with.

    flops: the operations of a batch.
    peak: the operations a second that this device could do.
    """

    flops: StepFlops
    peak: float
