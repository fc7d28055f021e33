"""An engine that computes nothing: it answers with given tokens at a given pace.

With it the server alone is measured, and tested where an answer must take its time or fail.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlm.engine.request import Event, FinishReason, Request

LOGPROB = -0.25
OTHER_TOKEN = 0
KEPT_REQUESTS = 16


@dataclass
class _Row:
    request_id: int
    request: Request
    num_written: int = 0


class StubEngine:
    """Gives a token of `answer` to every running request a step, over and over.

    answer: token ids; an end token ends a request.
    slots: requests that run at the same time.
    step_s: how long a step takes.
    fails: whether a request fails in its first step.
    requests: the last ones, for tests; with their pictures, so that all of them would fill memory.
    """

    def __init__(
        self,
        answer: Sequence[int],
        slots: int = 8,
        step_s: float = 0.001,
        end_ids: Sequence[int] = (),
        fails: Callable[[Request], bool] = lambda request: False,
    ) -> None:
        self.cancelled: list[int] = []
        self.requests: deque[Request] = deque(maxlen=KEPT_REQUESTS)
        self.num_requests = 0
        self.num_steps = 0
        self._answer = tuple(answer)
        self._slots = slots
        self._step_s = step_s
        self._end_ids = frozenset(end_ids)
        self._fails = fails
        self._waiting: deque[_Row] = deque()
        self._active: dict[int, _Row] = {}

    @property
    def num_active(self) -> int:
        """Requests that run."""
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    def submit(self, request: Request) -> int:
        """Queue a request and return its number."""
        request_id = self.num_requests
        self.num_requests += 1
        self.requests.append(request)
        self._waiting.append(_Row(request_id, request))
        return request_id

    def cancel(self, request_id: int) -> None:
        """Forget a request."""
        self.cancelled.append(request_id)
        self._active.pop(request_id, None)
        self._waiting = deque(row for row in self._waiting if row.request_id != request_id)

    def step(self) -> list[Event]:
        """Give every running request its next token."""
        while self._waiting and len(self._active) < self._slots:
            row = self._waiting.popleft()
            self._active[row.request_id] = row
        time.sleep(self._step_s)
        self.num_steps += 1
        return [self._advance(row) for row in list(self._active.values())]

    def _advance(self, row: _Row) -> Event:
        if self._fails(row.request):
            del self._active[row.request_id]
            return Event(row.request_id, finish_reason="error", error="told to fail")
        token = self._answer[row.num_written % len(self._answer)]
        row.num_written += 1
        reason: FinishReason | None = None
        if token in self._end_ids:
            reason = "stop"
        elif row.num_written == row.request.max_new_tokens:
            reason = "length"
        if reason is not None:
            del self._active[row.request_id]
        top = (token, LOGPROB), (OTHER_TOKEN, 8 * LOGPROB)
        return Event(row.request_id, token, LOGPROB, top, reason)
