"""Small results about data that cost a reading of all of it, kept in the user's cache folder.

The folder is `$XDG_CACHE_HOME/vlm`, by default `~/.cache/vlm`. Where it cannot be written there is
a warning, and the work is done again each time.
"""

import hashlib
import os
import tempfile
import warnings
from pathlib import Path


def cache_file(kind: str, identity: str) -> Path:
    """Where a result is kept; `identity` is everything that it depends on."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    return Path(home) / "vlm" / kind / f"{name}.json"


def keep(file: Path, content: str) -> None:
    """Write a result, all at once: several processes may do so at the same time."""
    temporary = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", dir=file.parent, delete=False, encoding="utf-8"
        ) as temporary:
            temporary.write(content)
        os.replace(temporary.name, file)
    except OSError as error:
        if temporary is not None:
            Path(temporary.name).unlink(missing_ok=True)
        warnings.warn(
            f"{file.parent} cannot be written ({error.strerror or error}), so what is kept there "
            "is worked out again each time: set XDG_CACHE_HOME to a folder that can",
            stacklevel=2,
        )
