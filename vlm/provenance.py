"""Which code and which libraries made a result."""

import platform
import subprocess
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "timm",
    "open-clip-torch",
    "webdataset",
    "accelerate",
    "pillow",
)


@lru_cache(maxsize=1)
def commit() -> str | None:
    """The commit of the source tree we run from, `-dirty` if it is changed; None outside git."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}-dirty" if changed else head


def library_versions() -> dict[str, str]:
    """Versions of Python, of ours, and of the libraries that results depend on."""
    return {
        "python": platform.python_version(),
        "vlm": version("vlm"),
        **{name: version(name) for name in LIBRARIES},
    }


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=10
    )
    return result.stdout.strip()
