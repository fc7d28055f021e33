"""Continuous batching: requests join and leave a running batch between its steps.

Axes: `B` rows of a pass, `V` vocabulary.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from vlm.engine.constraint import constrain
from vlm.engine.graphs import FixedDecode
from vlm.engine.image_cache import ImageCache
from vlm.engine.passes import Chunk, Passes
from vlm.engine.request import Event, FinishReason, Request, check_prompt
from vlm.engine.row_images import read_images, row_images
from vlm.engine.sampling import Sampler, log_probabilities
from vlm.engine.single_tokens import FEW_ROWS, SingleTokens, can_run, packed_bytes
from vlm.engine.slots import Answer, Slot, choose_slot
from vlm.model import VisionLanguageModel

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class EngineConfig(BaseModel):
    """How much an engine does at a time, and what it keeps.

    slots: answers that are written at the same time.
    max_tokens: positions of a slot, for a prompt and its answer; the text cache has slots times
        as many.
    min_free_slots: new requests are taken in when so many are free. More than one makes fewer and
        larger passes over prompts, and requests wait longer.
    prefill_chunk_tokens: of prompts in one step, padding counted, so that a long prompt does not
        hold up the answers of others for longer.
    encode_tiles: of pictures encoded in one step; a request's own may be more.
    image_cache_mb: keys and values of images kept for later requests, in MiB.
    cuda_graphs: on CUDA, a step's tokens come from one recorded graph over all slots.
    packed_weights_mb: on the CPU in float32, for more than two slots, the decoder's weights are
        copied once more for faster steps, if the copy takes no more MiB than this; None: never.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    slots: PositiveInt = 8
    max_tokens: PositiveInt
    min_free_slots: PositiveInt = 1
    prefill_chunk_tokens: PositiveInt = 512
    encode_tiles: PositiveInt = 32
    image_cache_mb: PositiveInt = 1024
    cuda_graphs: bool = True
    packed_weights_mb: PositiveInt | None = 1024


class Engine:
    """Answers many requests at the same time, a token of each a step.

    It owns the network, whose weights must not change while it is used: keys and values of text
    and of images are kept from one request to the next. Not thread-safe: one thread calls it.
    Greedy answers do not depend on what else runs.

    Args:
        eos_ids: tokens that end an answer.
        suppressed_ids: tokens that are never generated.
        images: kept images of the same network to go on with, instead of none.
    Raises:
        ValueError: slots would be longer than the model's positions, or never enough be free.
    """

    def __init__(
        self,
        network: VisionLanguageModel,
        eos_ids: Collection[int],
        suppressed_ids: Collection[int],
        config: EngineConfig,
        images: ImageCache | None = None,
    ) -> None:
        limit = network.decoder.config.max_positions
        if config.max_tokens > limit:
            raise ValueError(f"max_tokens is {config.max_tokens}; the model has {limit} positions")
        if config.min_free_slots > config.slots:
            wanted = config.min_free_slots
            raise ValueError(
                f"min_free_slots is {wanted}, needed: at most the {config.slots} slots"
            )
        self.config = config
        self.network = network
        # An empty cache is false.
        self.images = ImageCache(config.image_cache_mb * 2**20) if images is None else images
        self._passes = Passes(network, config.slots, config.max_tokens)
        self._decode_pass: Callable[[Sequence[Slot]], Tensor] = self._passes.decode
        cache = self._passes.cache
        if self._passes.device.type == "cuda" and config.cuda_graphs:
            self._decode_pass = FixedDecode(network, cache, config.slots).decode
        elif can_run(network.decoder):
            room = (config.packed_weights_mb or 0) * 2**20
            packed = config.slots > FEW_ROWS and packed_bytes(network.decoder) <= room
            self._decode_pass = SingleTokens(network.decoder, cache, packed).decode
        self._eos_ids = frozenset(eos_ids)
        self._suppressed = torch.tensor(
            sorted(suppressed_ids), dtype=torch.int64, device=self._passes.device
        )
        self._slots = [Slot(index) for index in range(config.slots)]
        self._waiting: deque[Answer] = deque()
        self._events: list[Event] = []  # told by the end of the step
        self._num_requests = 0
        self._num_steps = 0

    @property
    def num_active(self) -> int:
        """Requests in a slot."""
        return len(self._busy())

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    def submit(self, request: Request) -> int:
        """Queue a request and return its number.

        Raises:
            ValueError: it can never be answered: too long, empty, or of other images than its
                tokens say.
        """
        prompt = request.prompt.input_ids.tolist()
        self._check(request, prompt)
        number = self._num_requests
        self._num_requests += 1
        sampler = Sampler(request.sampling, prompt)
        constraint = None if request.grammar is None else request.grammar.start()
        self._waiting.append(Answer(number, request, prompt, sampler, constraint))
        return number

    def cancel(self, request_id: int) -> None:
        """End a request before its next token; the next step says so. One that ended is left."""
        for answer in self._waiting:
            if answer.request_id == request_id:
                self._waiting.remove(answer)
                self._events.append(Event(request_id, finish_reason="cancelled"))
                return
        for slot in self._busy():
            if slot.answer is not None and slot.answer.request_id == request_id:
                self._events.append(Event(request_id, finish_reason="cancelled"))
                slot.answer = None

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Generate a token of each running answer and run a chunk of new prompts.

        Returns:
            what became of requests, in no order; nothing while only parts of prompts were run, or
            when there is nothing to do.
        """
        self._num_steps += 1
        self._decode()
        self._admit()
        self._prefill()
        events, self._events = self._events, []
        return events

    def _check(self, request: Request, prompt: list[int]) -> None:
        decoder, limit = self.network.decoder.config, self.config.max_tokens
        if not prompt or request.max_new_tokens < 1:
            raise ValueError("a request needs a token in its prompt, and at least one new one")
        if len(prompt) + request.max_new_tokens > limit:
            whose = "the model's" if limit == decoder.max_positions else "a slot's"
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and {request.max_new_tokens} new ones exceed "
                f"{whose} {limit} positions"
            )
        num_images, num_keys = len(request.prompt.images), len(request.image_keys)
        check_prompt(self.network, prompt, num_images)
        if num_keys != num_images:
            raise ValueError(f"the prompt has {num_images} images and {num_keys} image keys")

    def _busy(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.answer is not None]

    def _decode(self) -> None:
        """Give every answer that has begun its next token."""
        writing = [s for s in self._busy() if s.running.next_token is not None]
        for slots, logits in self._attempt(writing, self._decode_pass):
            for slot in slots:
                assert slot.running.next_token is not None
                self._advance(slot, [slot.running.next_token])
            self._choose_tokens(slots, logits)

    def _admit(self) -> None:
        """Give waiting requests free slots, and what they see of their images."""
        admitted: list[Slot] = []
        num_tiles = 0
        if len(self._slots) - self.num_active < self.config.min_free_slots:
            return
        while self._waiting:
            answer = self._waiting[0]
            num_tiles += sum(
                image.num_tiles
                for key, image in zip(
                    answer.request.image_keys, answer.request.prompt.images, strict=True
                )
                if self.images.get(key) is None
            )
            if admitted and num_tiles > self.config.encode_tiles:
                break
            chosen = choose_slot(self._slots, answer, self.network.image_token_id)
            if chosen is None:
                break
            self._waiting.popleft()
            slot, num_kept = chosen
            slot.answer = answer
            slot.tokens = slot.tokens[: num_kept if self._may_continue(answer) else 0]
            slot.image_keys = answer.request.image_keys
            admitted.append(slot)
        self._attempt([slot for slot in admitted if slot.image_keys], self._give_images)

    def _may_continue(self, answer: Answer) -> bool:
        """Whether what a slot holds of a prompt equals what the whole prompt would give.

        Beyond the trained context `dynamic` positions depend on the prompt's length.
        """
        scaling = self.network.decoder.config.rope_scaling
        if scaling is None or scaling.kind != "dynamic":
            return True
        assert scaling.original_max_positions is not None
        return len(answer.prompt) <= scaling.original_max_positions

    def _give_images(self, slots: Sequence[Slot]) -> None:
        """Look up the images of slots; those that are not known are encoded together."""
        wanted = {
            key: image
            for slot in slots
            for key, image in zip(slot.image_keys, slot.running.request.prompt.images, strict=True)
        }
        layers = read_images(self.network, wanted, self.images)
        for slot in slots:
            images = [layers[key] for key in slot.image_keys]
            slot.running.images = row_images(
                self.network, slot.running.prompt, slot.image_keys, images
            )

    def _prefill(self) -> None:
        """Run the next chunks of prompts; those that are complete get their first token."""
        chunks = self._plan_chunks()

        def run(slots: Sequence[Slot]) -> Tensor:
            return self._passes.prefill([chunks[slot.index] for slot in slots])

        for slots, logits in self._attempt([chunk.slot for chunk in chunks.values()], run):
            for slot in slots:
                self._advance(slot, chunks[slot.index].ids)
            complete = [len(slot.tokens) == len(slot.running.prompt) for slot in slots]
            rows = [row for row, whole in enumerate(complete) if whole]
            if rows:
                self._choose_tokens([slots[row] for row in rows], logits[rows])

    def _plan_chunks(self) -> dict[int, Chunk]:
        """The chunks of this step, by slot: those unserved for longest first, within the budget."""
        budget = self.config.prefill_chunk_tokens
        pending = [s for s in self._busy() if len(s.tokens) < len(s.running.prompt)]
        pending.sort(key=lambda slot: (slot.last_used, slot.running.request_id))
        chunks: dict[int, Chunk] = {}
        longest = 0
        for slot in pending:
            start = len(slot.tokens)
            ids = slot.running.prompt[start : start + budget]
            # Whole prompts read nothing but themselves; continued ones read the cache.
            if any((chunk.start == 0) != (start == 0) for chunk in chunks.values()):
                continue
            longest = max(longest, len(ids))
            if chunks and longest * (len(chunks) + 1) > budget:
                break
            chunks[slot.index] = Chunk(slot, start, ids)
        return chunks

    def _advance(self, slot: Slot, ids: Sequence[int]) -> None:
        """Note that a slot holds the keys and values of further tokens."""
        slot.tokens.extend(ids)
        slot.last_used = self._num_steps

    def _attempt(
        self, slots: Sequence[Slot], run: Callable[[Sequence[Slot]], Result]
    ) -> list[tuple[Sequence[Slot], Result]]:
        """Run slots together and, where that fails, each alone; end those that fail alone.

        Returns:
            slots that were run together, and the result.
        """
        if not slots:
            return []
        try:
            return [(slots, run(slots))]
        except Exception as error:
            if len(slots) > 1:
                return [done for slot in slots for done in self._attempt([slot], run)]
            log.exception("request %d failed", slots[0].running.request_id)
            self._fail(slots[0], f"{type(error).__name__}: {error}")
            return []

    def _choose_tokens(self, slots: Sequence[Slot], logits: Tensor) -> None:
        """Choose each slot's next token by its (B, V) logits."""
        logits = logits.index_fill(1, self._suppressed, -torch.inf)
        choosable, errors = constrain(logits, [slot.running.constraint for slot in slots])
        largest, likeliest = (column.tolist() for column in choosable.max(dim=-1))
        for row, slot in enumerate(slots):
            if row in errors:
                self._fail(slot, errors[row])
                continue
            if not math.isfinite(largest[row]):
                self._fail(slot, "the network's logits are not finite")
                continue
            sampler = slot.running.sampler
            token = likeliest[row] if sampler.takes_likeliest else sampler(choosable[row])
            if slot.running.constraint is not None:
                slot.running.constraint.advance(token)
            self._tell(slot, token, logits[row])

    def _tell(self, slot: Slot, token: int, logits: Tensor) -> None:
        """Add a token to a slot's answer, and free the slot if it was the last."""
        answer = slot.running
        sampling = answer.request.sampling
        answer.next_token = token
        answer.num_written += 1
        reason: FinishReason | None = None
        if token in self._eos_ids or token in sampling.stop_ids:
            reason = "stop"
        elif answer.num_written == answer.request.max_new_tokens:
            reason = "length"
        event = Event(answer.request_id, token, finish_reason=reason)
        if sampling.logprobs:
            logprob, top = log_probabilities(logits, token, sampling.top_logprobs)
            event = replace(event, logprob=logprob, top_logprobs=top)
        self._events.append(event)
        if reason is not None:
            slot.answer = None

    def _fail(self, slot: Slot, error: str) -> None:
        self._passes.forget(slot)
        event = Event(slot.running.request_id, finish_reason="error", error=error)
        self._events.append(event)
        slot.answer = None
