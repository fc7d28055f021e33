"""Generated Python with its tests, run in a process of its own that may do little.

Nothing runs unless the caller said so around the call, as `vlm eval --allow-code-execution` does;
no configuration file can. docs/text_benchmarks.md says what this keeps from whom: it holds the
mistakes of a model, and is no fortress against a program that was written to break out.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from vlm.errors import UserError

NOT_ALLOWED = (
    "answers are programs, which do not run unless you allow it: add --allow-code-execution. They "
    "run confined, but were written by a model: docs/text_benchmarks.md says what they could do"
)
_CHILD = Path(__file__).with_name("confined.py")
_allowed = ContextVar("code execution is allowed", default=False)


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    run_s: seconds on the clock from its start on; 3 are HumanEval's published limit. cpu_s: seconds
    of a core. kill_s: seconds after which it is killed, whatever it did about the former, starting
    Python included. memory_bytes: of address space. file_bytes: of each file.
    """

    run_s: float = 3
    cpu_s: int = 4
    kill_s: float = 20
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20
    open_files: int = 64

    def by_name(self) -> dict[str, int]:
        """As the system calls them (`RLIMIT_...`)."""
        return {
            "CPU": self.cpu_s,
            "AS": self.memory_bytes,
            "FSIZE": self.file_bytes,
            "NOFILE": self.open_files,
            "CORE": 0,
            "NPROC": 1,
        }


@dataclass(frozen=True)
class Outcome:
    """How a program ended: `passed`, or what it raised, or why it was killed.

    kept: rights that this system could not take from it.
    """

    ending: str
    kept: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it ran to its end."""
        return self.ending == "passed"


@contextmanager
def code_execution_allowed() -> Iterator[None]:
    """Let programs run while this is entered."""
    token = _allowed.set(True)
    try:
        yield
    finally:
        _allowed.reset(token)


def run_programs(programs: Sequence[str], limits: Limits | None = None) -> list[Outcome]:
    """Run programs, as many at once as there are cores, and say how each ended, in order.

    Warns, once a call, of what this system does not keep programs from.

    Raises:
        UserError: it was not allowed.
    """
    if not _allowed.get():
        raise UserError(NOT_ALLOWED)
    limits = limits or Limits()
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        outcomes = list(pool.map(lambda program: _run(program, limits), programs))
    kept = sorted({name for outcome in outcomes for name in outcome.kept})
    if kept:
        warnings.warn(
            f"programs ran without confinement of: {', '.join(kept)}; this system cannot do it. "
            "Run such an evaluation in a container",
            stacklevel=2,
        )
    return outcomes


def _run(program: str, limits: Limits) -> Outcome:
    token = secrets.token_hex(16)
    job = {
        "program": program,
        "token": token,
        "limits": limits.by_name(),
        "run_s": limits.run_s,
    }
    with tempfile.TemporaryDirectory(prefix="vlm-", ignore_cleanup_errors=True) as folder:
        child = subprocess.Popen(
            [sys.executable, "-I", "-B", "-X", "utf8", str(_CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            said, _ = child.communicate(json.dumps(job).encode(), timeout=limits.kill_s)
        except subprocess.TimeoutExpired:
            return Outcome("timed out")
        finally:
            # All of its group, should it have started others where that cannot be refused.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.kill()
            child.communicate()
    return _outcome(said, token, child.returncode)


def _outcome(said: bytes, token: str, returncode: int) -> Outcome:
    found: dict[str, object] = {}
    for line in said.splitlines():
        with suppress(ValueError, TypeError):
            message = json.loads(line)
            if message["token"] == token:
                found |= message
    kept = found.get("kept", [])
    assert isinstance(kept, list)
    if "ending" in found:
        return Outcome(str(found["ending"]), tuple(kept))
    if returncode in (-signal.SIGALRM, -signal.SIGXCPU):
        return Outcome("timed out", tuple(kept))
    if returncode < 0:
        return Outcome(f"killed by {signal.Signals(-returncode).name}", tuple(kept))
    return Outcome(f"ended early, with status {returncode}", tuple(kept))
