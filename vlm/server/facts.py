"""What the log and the metrics say of a request: counts and times, never contents."""

import json
import logging
import sys
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class RequestFacts:
    """What a request took.

    first_token_s: seconds from its head to the first token.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    images: int = 0
    first_token_s: float | None = None
    _start: float = field(default_factory=time.perf_counter)

    def add_token(self) -> None:
        """Count a token that was generated."""
        if self.first_token_s is None:
            self.first_token_s = time.perf_counter() - self._start
        self.completion_tokens += 1

    def as_logged(self) -> dict[str, int | float]:
        """What there is to say."""
        if self.first_token_s is None:
            return {}
        return {
            "images": self.images,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "first_token_s": round(self.first_token_s, 4),
        }


class JsonLines(logging.Formatter):
    """A line of JSON for each record, with the mapping `facts` that it may carry."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        said: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **record.__dict__.get("facts", {}),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)


def log_to_stderr() -> None:
    """Write the records of the server, of its content policy and of uvicorn to stderr, as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("vlm.server", "vlm.safety", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
