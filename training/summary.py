"""`run.json`: how a run ended, and with what."""

import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from training.distributed import is_first_rank
from training.signals import RunStopped
from vlm.provenance import commit, library_versions
from vlm.weights.folder import write_json

SUMMARY_FILE = "run.json"


@contextmanager
def summarised(out: Path, facts: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Write `run.json` when this context is left, whether the run has finished or what ended it.

    Args:
        facts: asked for at the end: steps, figures, and so on.
    """
    ending, why = "finished", None
    try:
        yield
    except RunStopped as stopped:
        ending, why = "stopped", str(stopped)
        raise
    except BaseException as error:
        ending, why = "failed", f"{type(error).__name__}: {error}"
        raise
    finally:
        if is_first_rank():
            _write(out, {"ending": ending, "why": why, **facts()})


def _write(out: Path, content: Mapping[str, Any]) -> None:
    general = {
        "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "peak_memory_bytes": peak_memory_bytes(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "host": platform.node(),
        "commit": commit(),
        "versions": library_versions(),
    }
    try:
        write_json(out / SUMMARY_FILE, {**content, **general})
    except OSError as error:  # a full disk must not hide what it has led to
        print(f"warning: {out / SUMMARY_FILE} cannot be written: {error}", file=sys.stderr)


def peak_memory_bytes() -> int:
    """The most memory so far: of tensors on the GPU if there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
