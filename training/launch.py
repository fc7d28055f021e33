"""One process per GPU, started by the command itself and ended with it.

torch's elastic agent, which is what `torchrun` runs, starts them, watches them, and ends all when
one has ended badly.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from training.config import TrainConfig
from training.distributed import is_launched

# What a worker has to save and exit after one of them has failed; then it is killed.
GRACE_S = 30
PARENT_POLL_S = 1.0


def processes_wanted(config: TrainConfig) -> int:
    """How many processes a command that nothing has launched should be: one for each GPU."""
    if is_launched() or config.device == "cpu" or config.parallel.strategy == "none":
        return 1
    return max(1, torch.cuda.device_count())


def launch(num_processes: int, arguments: Sequence[str]) -> int:
    """Run `vlm` with these arguments in several processes; return the exit code.

    It is 0 when all ended well, else that of the first to fail, or 128 and the number of the
    signal that ended it or this process.
    """
    cores = os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // num_processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=f"vlm-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        shutdown_timeout=GRACE_S,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "vlm", *arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        print(f"error: process {failure.local_rank} of {num_processes} failed", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


def end_with_launcher() -> None:
    """End this process soon after the one that launched it has gone, however that ended."""
    threading.Thread(target=_watch, args=(os.getppid(),), name="launcher", daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(PARENT_POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
