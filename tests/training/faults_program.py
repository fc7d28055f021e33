"""Run as a program by test_faults.py: runs that are killed, signalled and starved, for real.

    python faults_program.py ACTS.json

One process imports, then forks a process for every act, one after the other: the front door with
the act's arguments, and its fault in the way. Writes each act's exit code and output to
OUT/NAME.json; an act with `until` is left running behind the moment when that file exists, and
killed at the end of the act after it.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from training import checkpoints, trackers
from training.sharded import Parts
from training.trainer import Trainer
from vlm.cli import main

SECONDS = 60


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_write(step: int, path: Path) -> None:
    """Kill the process when half of a checkpoint's tensors are written, the second time."""
    plain, calls = Parts.write, []

    def write(self: Parts, folder: Path) -> list[str]:
        names = plain(self, folder)
        calls.append(folder)
        if len(calls) == 2:
            file = folder / names[0]
            os.truncate(file, file.stat().st_size // 2)
            kill()
        return names

    Parts.write = write  # type: ignore[method-assign]


def kill_before_rename(step: int, path: Path) -> None:
    """Kill the process when the second checkpoint is whole but for its name."""
    plain = checkpoints._flush_folder

    def flush(folder: Path) -> None:
        plain(folder)
        if folder.name == ".step-00000004.writing":
            kill()

    checkpoints._flush_folder = flush


def kill_in_prune(step: int, path: Path) -> None:
    """Kill the process when an old checkpoint is half deleted."""
    plain = shutil.rmtree

    def remove(folder: Path, *arguments: Any, **settings: Any) -> None:
        if folder.name.endswith(".deleted") and folder.exists():
            next(folder.iterdir()).unlink()
            kill()
        plain(folder, *arguments, **settings)

    shutil.rmtree = remove  # type: ignore[assignment]


def in_step(step: int, fault: Callable[[], object]) -> None:
    """Let something happen in the middle of a step, when the checkpoint before it is complete."""
    plain = Trainer._update

    def update(self: Any, batches: Any) -> Any:
        if self.step + 1 == step:
            self.saver.wait()
            fault()
        return plain(self, batches)

    Trainer._update = update  # type: ignore[method-assign]


def signal_group(number: int) -> None:
    """Signal this process and its loader workers, as schedulers do."""
    # From another process: what comes from the run itself tells its workers to end.
    program = f"import os; os.killpg({os.getpgrp()}, {int(number)})"
    subprocess.run([sys.executable, "-c", program], check=True, start_new_session=True)


def signal_twice() -> None:
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)


def limit_file_size() -> None:
    """Let no file grow beyond 100 kB, as on a disk that is nearly full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


def wait_for_the_end(path: Path) -> None:
    path.touch()
    time.sleep(SECONDS)


def wait_less(step: int, path: Path) -> None:
    """Wait less for trackers than a run that somebody needs."""
    trackers.CLOSE_S = 3.0


FAULTS: dict[str, Callable[[int, Path], None]] = {
    "impatient": wait_less,
    "none": lambda step, path: None,
    "kill in write": kill_in_write,
    "kill before rename": kill_before_rename,
    "kill in prune": kill_in_prune,
    "kill": lambda step, path: in_step(step, kill),
    "SIGTERM": lambda step, path: in_step(step, lambda: signal_group(signal.SIGTERM)),
    "SIGUSR1": lambda step, path: in_step(step, lambda: signal_group(signal.SIGUSR1)),
    "SIGTERM twice": lambda step, path: in_step(step, signal_twice),
    "full disk": lambda step, path: in_step(step, limit_file_size),
    "wait": lambda step, path: in_step(step, lambda: wait_for_the_end(path)),
}


def start(act: dict[str, Any], output: Path) -> int:
    """Fork the process of an act; return its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        FAULTS[act["fault"]](act["step"], Path(act["until"] or ""))
        code = main(act["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait_until(path: Path) -> None:
    for _ in range(SECONDS * 20):
        if path.exists():
            return
        time.sleep(0.05)
    raise TimeoutError(path)


def run(acts: list[dict[str, Any]], out: Path) -> None:
    waiting: int | None = None
    for act in acts:
        output = out / f"{act['name']}.txt"
        child = start(act, output)
        if act["until"]:
            wait_until(Path(act["until"]))
            waiting = child
            continue
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        (out / f"{act['name']}.json").write_text(json.dumps([code, output.read_text()]))
        if waiting is not None:
            os.kill(waiting, signal.SIGKILL)
            os.waitpid(waiting, 0)
            waiting = None


if __name__ == "__main__":
    file = Path(sys.argv[1])
    run(json.loads(file.read_text()), file.parent)
