"""Places for running answers: which one a prompt gets, and what it need not compute again."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from vlm.engine.constraint import Constraint
from vlm.engine.request import Request
from vlm.engine.row_images import RowImages
from vlm.engine.sampling import Sampler


@dataclass
class Answer:
    """A request on its way.

    prompt: its token ids.
    num_written: tokens generated so far.
    next_token: the one generated last, which the network has not read; None before the first.
    """

    request_id: int
    request: Request
    prompt: list[int]
    sampler: Sampler
    constraint: Constraint | None = None
    images: RowImages | None = None
    num_written: int = 0
    next_token: int | None = None


@dataclass
class Slot:
    """A row of the text cache.

    tokens: those whose keys and values it holds.
    image_keys: the images of the prompt that it was last given.
    answer: what runs in it; None while it is free, and what it holds waits to be continued.
    last_used: the step of its last use.
    """

    index: int
    tokens: list[int] = field(default_factory=list)
    image_keys: tuple[str, ...] = ()
    answer: Answer | None = None
    last_used: int = -1

    @property
    def running(self) -> Answer:
        """The answer of a slot that is not free."""
        assert self.answer is not None
        return self.answer

    def reusable_tokens(self, answer: Answer, image_token_id: int) -> int:
        """How many tokens at the start of a prompt this slot holds already.

        Its last token is always computed, for its logits. 0 where less than half would be saved:
        prompts that begin alike are better computed together.
        """
        half = (len(answer.prompt) + 1) // 2
        if self.tokens[:half] != answer.prompt[:half]:
            return 0
        limit = min(len(self.tokens), len(answer.prompt) - 1)
        shared = common_prefix(self.tokens[:limit], answer.prompt[:limit])
        held, wanted = self.image_keys, answer.request.image_keys
        places = [place for place in range(shared) if answer.prompt[place] == image_token_id]
        for number, place in enumerate(places):
            # A place without a key here was written by the network, and stands for no image.
            if number >= len(held) or held[number] != wanted[number]:
                shared = place
                break
        return shared if 2 * shared >= len(answer.prompt) else 0


def choose_slot(
    slots: Sequence[Slot], answer: Answer, image_token_id: int
) -> tuple[Slot, int] | None:
    """Return the free slot for a prompt and how many of its tokens the slot holds; None: all busy.

    The one that saves most; else one that keeps the busy slots close together, because a step
    computes every slot between them; else the one unused for longest.
    """
    free = [slot for slot in slots if slot.answer is None]
    if not free:
        return None
    busy = [slot.index for slot in slots if slot.answer is not None]
    saved = {slot.index: slot.reusable_tokens(answer, image_token_id) for slot in free}

    def rank(slot: Slot) -> tuple[int, int, int]:
        span = max([slot.index, *busy]) - min([slot.index, *busy])
        return -saved[slot.index], span, slot.last_used

    best = min(free, key=rank)
    return best, saved[best.index]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest common prefix of two sequences, by bisection over equal slices."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
