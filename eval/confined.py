"""The other side of eval/sandbox.py: gives up what it can, then runs one program.

Started as a script by a bare interpreter, so it imports the standard library only. It reads a job
from standard input and writes two lines of JSON: what it could not give up, and how the program
ended. The program shares this process: one that sets out to cheat can write the second line.
"""

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_CAPABILITY_VERSION_3 = 0x20080522

# Landlock: https://docs.kernel.org/userspace-api/landlock.html. System calls have these numbers on
# every machine.
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_ALL_OF_FIRST_VERSION = (1 << 13) - 1
_REFER, _TRUNCATE = 1 << 13, 1 << 14
# What an interpreter reads besides its own folders.
_READ_TOO = ("/usr/lib", "/lib", "/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")

# seccomp: https://docs.kernel.org/userspace-api/seccomp_filter.html. A machine's audit number and
# column; and the system calls that are refused, by their numbers there (None: there is none).
_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    # Processes and threads.
    "clone": (56, 220), "fork": (57, None), "vfork": (58, None), "clone3": (435, 435),
    "execve": (59, 221), "execveat": (322, 281),
    # Networks; io_uring would open sockets too.
    "socket": (41, 198), "io_uring_setup": (425, 425),
    # Other processes, and limits of this one.
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "prlimit64": (302, 261), "setrlimit": (160, 164),
    # Rights and times of files, which Landlock leaves alone.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    # Ways to win rights back, and what is seldom used and often broken.
    "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
}  # fmt: skip
_X32_CALLS = 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | 1  # 1 is EPERM


def main() -> None:
    """Run the job of standard input."""
    job = json.loads(sys.stdin.buffer.read())
    report = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    kept = confine(os.getcwd(), job["limits"])
    os.write(report, (json.dumps({"token": job["token"], "kept": kept}) + "\n").encode())
    # Without a handler the signal ends the process.
    signal.setitimer(signal.ITIMER_REAL, job["run_s"])
    ending = run(job["program"])
    os.write(report, (json.dumps({"token": job["token"], "ending": ending}) + "\n").encode())


def run(program: str) -> str:
    """Run a program; `passed`, or what it raised."""
    try:
        exec(compile(program, "<program>", "exec"), {})
    except BaseException as error:  # also SystemExit: a program that ends early has not passed
        return f"{type(error).__name__}: {error}"[:500]
    return "passed"


def confine(folder: str, limits: dict[str, int]) -> list[str]:
    """Set the limits and give up rights for good.

    Returns:
        the names of what could not be given up on this system.
    """
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        most = resource.getrlimit(kind)[1]
        allowed = value if most == resource.RLIM_INFINITY else min(value, most)
        # A second more between the signal that says so and the kill.
        resource.setrlimit(kind, (allowed, allowed + 1 if name == "CPU" and most < 0 else allowed))
    steps: dict[str, Callable[[], None]] = {
        "capabilities": _drop_capabilities,
        "files": lambda: _keep_to_folder(folder),
        "network and processes": _refuse_calls,
    }
    kept = []
    for name, step in steps.items():
        try:
            step()
        except (OSError, AttributeError, KeyError):
            kept.append(name)
    return kept


def _drop_capabilities() -> None:
    """Root becomes a user like others, and nothing that it runs can win rights."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _checked(_libc().capset(header, bytes(24)))


def _keep_to_folder(folder: str) -> None:
    """Landlock: writes in the folder only, reads there and where Python is."""
    libc = _libc()
    version = _checked(libc.syscall(_LANDLOCK_CREATE, None, 0, 1))
    handled = _ALL_OF_FIRST_VERSION
    handled |= (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    ruleset = _checked(libc.syscall(_LANDLOCK_CREATE, struct.pack("Q", handled), 8, 0))
    reads = {*sys.path, sys.prefix, sys.base_prefix, sys.exec_prefix, *_READ_TOO}
    rules = {path: _READ_FILE | _READ_DIR for path in reads}
    rules |= {path: _READ_FILE | _WRITE_FILE for path in _DEVICES}
    rules[folder] = handled & ~_EXECUTE
    for path, allowed in rules.items():
        if not os.path.exists(path):
            continue
        if not os.path.isdir(path):
            allowed &= _READ_FILE | _WRITE_FILE
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", allowed, parent)
        _checked(libc.syscall(_LANDLOCK_ADD, ruleset, 1, rule, 0))
        os.close(parent)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _checked(libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0))
    os.close(ruleset)


def _refuse_calls() -> None:
    """seccomp: system calls for processes, networks and rights fail with EPERM."""
    audit, column = _ARCHITECTURES[platform.machine()]
    numbers = [numbers[column] for numbers in _REFUSED.values()]
    refused = [(_EQUAL, number) for number in numbers if number is not None]
    if column == 0:  # the same calls by their other numbers
        refused.insert(0, (_AT_LEAST, _X32_CALLS))
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    for place, (test, number) in enumerate(refused):
        lines.append((test, len(refused) - place, 0, number))
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("HP", len(lines), ctypes.addressof(code)))
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, *arguments: int) -> None:
    words = [ctypes.c_ulong(argument) for argument in (*arguments, 0, 0, 0, 0)[:4]]
    _checked(_libc().prctl(option, *words))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


if __name__ == "__main__":
    main()
