"""The public API: load a model folder, ask, caption, chat, stream."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from encoders.tiling import TiledImage
from vlm.adapters.folder import is_adapter_folder, read_adapter
from vlm.answering import Answering, RunningAnswer
from vlm.chat.processor import Processor
from vlm.engine.sampling import SamplingConfig
from vlm.engine.scoring import Likelihood
from vlm.errors import UserError
from vlm.images import read_image
from vlm.inputs import Example, batch_order
from vlm.likelihood import Likelihoods
from vlm.model import VisionLanguageModel
from vlm.weights.folder import COMPONENTS, load_component, read_component, read_folder_config
from vlm.weights.quantized import Saving, parse_quantization
from vlm.weights.quantized import quantize as quantized

ImageSource = str | Path | bytes | Image.Image
# Messages, see `Model.chat`; or a text, which is continued as it stands, without a chat template.
Prompt = str | Sequence[Mapping[str, Any]]
FinishReason = Literal["stop", "length"]

CAPTION_PROMPT = "Describe the image."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class AnswerConfig(SamplingConfig):
    """How an answer is generated.

    max_tokens: at most this many new tokens.
    stop: the answer ends before the first of these strings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens: PositiveInt = 128
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()


class Usage(BaseModel):
    """Text tokens of a request; image tokens are not text."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer, its log probability, and the likeliest tokens with theirs."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Reply:
    """An answer; `finish_reason` is "length" when `max_tokens` cut it off.

    logprobs: of every token that was generated, if the setting `logprobs` asked for them.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] = ()


class Model:
    """A loaded model: its network and its processor.

    Every method takes the fields of `AnswerConfig` as keywords: `max_tokens`, `temperature`,
    `top_p`, `seed`, `stop` and others. What was computed of pictures and conversations is kept for
    later calls, so the weights must not change behind it. Threads may call it at the same time.

    saving: what rounded weights take, where some were.
    """

    def __init__(
        self,
        network: VisionLanguageModel,
        processor: Processor,
        folder: Path,
        saving: Saving | None = None,
    ) -> None:
        self.network = network.eval()
        self.processor = processor
        self.folder = folder
        self.saving = saving
        self.answering = Answering(self.network, processor.tokenizer)
        self.likelihoods = Likelihoods(self.network, processor, self.answering.images)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.network.decoder.embed_tokens.weight.device

    def ask(
        self, images: ImageSource | Sequence[ImageSource], question: str, **settings: Any
    ) -> str:
        """Answer a question about one image, several, or none."""
        return self.answer_batch([(_as_sequence(images), question)], **settings)[0]

    def caption(self, image: ImageSource, **settings: Any) -> str:
        """Describe an image."""
        return self.ask(image, CAPTION_PROMPT, **settings)

    def chat(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Reply:
        """Answer the last message of a conversation.

        Args:
            messages: `{"role", "content"}` in order; content is a string or a list of
                `{"type": "text", "text": ...}` and `{"type": "image", "image": ...}`, an image
                being a path, a PIL image or the bytes of a file.
        Raises:
            UserError: a malformed message, or a picture that cannot be read.
        """
        return self._reply([self._prompt(messages)], settings)[0]

    def choices(
        self, messages: Sequence[Mapping[str, Any]], num_choices: int, **settings: Any
    ) -> list[Reply]:
        """Like `chat`, giving several answers; with a `seed`, each has the next one as its own."""
        seed = self._config(settings).seed
        seeds = [None if seed is None else (seed + index) % 2**64 for index in range(num_choices)]
        prompts = [self._prompt(messages)] * num_choices
        return self._reply(prompts, settings, num_choices, seeds)

    def stream(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Iterator[str]:
        """Like `chat`, giving the answer's text in pieces as it is generated."""
        for (answer,) in self._run([self._prompt(messages)], self._config(settings), 1):
            yield from answer.text.new_pieces(final=answer.finish_reason is not None)

    def answer_batch(
        self,
        requests: Sequence[tuple[Sequence[ImageSource], str]],
        batch_size: int = 32,
        **settings: Any,
    ) -> list[str]:
        """Answer (images, question) requests, up to `batch_size` at a time.

        Requests that show the same objects as images stay together: such an image is read, tiled
        and encoded once.
        """
        tiled = self._tile_each([image for images, _ in requests for image in images])
        prompts = [
            self.processor.encode(
                *_question_chat(question, [tiled[id(image)] for image in images]),
                add_generation_prompt=True,
            )
            for images, question in requests
        ]
        order = batch_order(
            [len(prompt.input_ids) for prompt in prompts],
            [tuple(map(id, prompt.images)) for prompt in prompts],
        )
        replies = self._reply([prompts[index] for index in order], settings, batch_size)
        texts = [""] * len(prompts)
        for index, reply in zip(order, replies, strict=True):
            texts[index] = reply.text
        return texts

    def score(self, prompt: Prompt, continuations: Sequence[str]) -> list[Likelihood]:
        """Return how likely each text is as what comes next; see `score_batch`."""
        return self.score_batch([(prompt, continuations)])[0]

    def score_batch(
        self, requests: Sequence[tuple[Prompt, Sequence[str]]], batch_size: int = 32
    ) -> list[list[Likelihood]]:
        """Return how likely texts are as answers to messages, or as continuations of a text.

        A prompt and its pictures are run once for all that may follow, up to `batch_size` prompts
        at a time. Equal prompts count as one, and pictures that look the same are encoded once. An
        answer counts as it is given, without what ends its turn. The context of a text is split
        from what follows as by lm-eval's harness, see `vlm.likelihood.split_continuation`.

        Raises:
            UserError: a malformed message, a picture that cannot be read, or a continuation
                without tokens or too long.
        """
        chats = [_split_images(p) if not isinstance(p, str) else ([], []) for p, _ in requests]
        tiled = self._tile_each([image for _, images in chats for image in images])
        choices = [
            self.likelihoods.continuations(prompt, continuations)
            if isinstance(prompt, str)
            else self.likelihoods.answers(
                messages, [tiled[id(image)] for image in images], continuations
            )
            for (prompt, continuations), (messages, images) in zip(requests, chats, strict=True)
        ]
        return self.likelihoods.score(choices, batch_size)

    def score_texts(
        self, texts: Sequence[str], batch_size: int = 32, window_tokens: int | None = None
    ) -> list[Likelihood]:
        """Return how likely texts are by themselves, without a chat template.

        A text longer than `window_tokens`, or else the model's positions, is read in windows: each
        token counts once, and the last window reaches back as far as fits (lm-eval's rolling
        log-likelihood).

        Raises:
            UserError: a text has no tokens, or the window is longer than the model's positions.
        """
        return self.likelihoods.rolling(texts, batch_size, window_tokens)

    def _tile_each(self, images: Sequence[ImageSource]) -> dict[int, TiledImage]:
        """Read and tile images, each object once; they stand under its `id`."""
        distinct = {id(image): image for image in images}
        return {key: self.processor.tile(read_image(image)) for key, image in distinct.items()}

    def _reply(
        self,
        prompts: Sequence[Example],
        settings: Mapping[str, Any],
        max_slots: int = 1,
        seeds: Sequence[int | None] | None = None,
    ) -> list[Reply]:
        answers: list[RunningAnswer] = []
        for running in self._run(prompts, self._config(settings), max_slots, seeds):
            answers = running
        return [
            Reply(
                answer.text.text.strip(),
                "stop" if answer.finish_reason == "stop" else "length",
                Usage(
                    prompt_tokens=len(prompt.input_ids),
                    completion_tokens=len(answer.text.token_ids),
                ),
                tuple(
                    TokenLogprob(event.token, event.logprob, event.top_logprobs)
                    for event in answer.events
                    if event.token is not None and event.logprob is not None
                ),
            )
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

    def _run(
        self,
        prompts: Sequence[Example],
        config: AnswerConfig,
        max_slots: int,
        seeds: Sequence[int | None] | None = None,
    ) -> Iterator[list[RunningAnswer]]:
        fields = config.model_dump(include=set(SamplingConfig.model_fields))
        samplings = [
            SamplingConfig.model_validate({**fields, "seed": seed})
            for seed in seeds or [config.seed] * len(prompts)
        ]
        return self.answering.run(prompts, samplings, config.max_tokens, config.stop, max_slots)

    def _prompt(self, messages: Sequence[Mapping[str, Any]]) -> Example:
        plain, images = _split_images(messages)
        pictures = [read_image(image) for image in images]
        return self.processor.encode(plain, pictures, add_generation_prompt=True)

    @staticmethod
    def _config(settings: Mapping[str, Any]) -> AnswerConfig:
        unknown = set(settings) - set(AnswerConfig.model_fields)
        if unknown:
            raise UserError(
                f"unknown setting {sorted(unknown)[0]!r}; "
                f"there are {', '.join(AnswerConfig.model_fields)}"
            )
        try:
            return AnswerConfig.model_validate(settings)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(map(str, first["loc"]))
            raise UserError(f"setting {name} is {first['input']!r}: {first['msg']}") from None


def load(
    path: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | Sequence[str] | Mapping[str, str] | None = None,
) -> Model:
    """Load a model folder: one of ours, or one of transformers' Mllama (Llama 3.2 Vision).

    The folder of an adapter is loaded as its base with the adapter merged in.

    Args:
        device: "auto" is the first GPU where there is one, else the CPU.
        dtype: "float32", "bfloat16", "float16"; "auto" is bfloat16 on a GPU and for int4, else
            float32.
        quantize: hold the weights of the decoder's layers in "int8" or "int4", or those of the
            parts named: {"decoder": "int4", "output": "int8"}; see vlm/weights/quantized.py.
    Raises:
        UserError: the folder is missing, damaged, holds only a part of a model or one of another
            kind; an adapter's base is not there, or is another model; it cannot be quantized so.
    """
    folder, parts = Path(path), parse_quantization(quantize)
    adapter = read_adapter(folder) if is_adapter_folder(folder) else None
    weights = folder if adapter is None else adapter.base
    config = read_folder_config(weights)
    missing = [component for component in COMPONENTS if component not in config.components]
    if missing:
        raise UserError(
            f"{weights} (stage {config.stage}) has no {' and no '.join(missing)}; "
            "load the folder of an align or finetune stage"
        )
    target = find_device(device)
    if dtype not in (*DTYPES, "auto"):
        raise UserError(f"unknown dtype {dtype!r}; there are auto, {', '.join(DTYPES)}")
    if dtype == "auto":
        short = target.type == "cuda" or "int4" in parts.values()
        dtype = "bfloat16" if short else "float32"
    processor = Processor.from_folder(weights, config.model.vision)
    processor.tokenizer.check_fits(config.model.decoder.num_embeddings)
    with torch.device("meta"):
        network = VisionLanguageModel(config.model, processor.tokenizer.image_id)
    network.to_empty(device=target).to(DTYPES[dtype])
    for component in COMPONENTS:
        tensors = read_component(weights, component)
        load_component(getattr(network, component), tensors, component, weights)
    if adapter is not None:
        adapter.merge_into(network)
    saving = quantized(network.requires_grad_(False), parts) if parts else None
    return Model(network, processor, folder, saving)


def find_device(name: str) -> torch.device:
    """Return the device that a user names; "auto" is the first GPU where there is one.

    Raises:
        UserError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}; there are auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {name!r} was asked for, but torch sees no CUDA device")
    return device


def _as_sequence(images: ImageSource | Sequence[ImageSource]) -> Sequence[ImageSource]:
    if isinstance(images, str | Path | bytes | Image.Image):
        return [images]
    return images


def _question_chat(
    question: str, images: Sequence[TiledImage]
) -> tuple[list[dict[str, Any]], Sequence[TiledImage]]:
    """A chat that shows images and asks a question, and its images."""
    parts = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}], images


def _split_images(
    messages: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], list[ImageSource]]:
    """Separate the images of messages from their places."""
    plain: list[dict[str, Any]] = []
    images: list[ImageSource] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping):
            raise UserError(f"{where} is a {type(message).__name__}, needed: role and content")
        if set(message) != {"role", "content"}:
            raise UserError(f"{where} has the keys {sorted(message)}, needed: role and content")
        content = message["content"]
        if not isinstance(content, str | list | tuple):
            raise UserError(
                f"the content of {where} is a {type(content).__name__}, "
                "needed: text or a list of parts"
            )
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        kept = []
        for part in parts:
            match part:
                case {"type": "image", "image": image}:
                    images.append(image)
                    kept.append({"type": "image"})
                case {"type": "text", "text": str(text)}:
                    kept.append({"type": "text", "text": text})
                case _:
                    raise UserError(
                        f"{where} has a part that is neither "
                        '{"type": "text", "text": ...} nor {"type": "image", "image": ...}'
                    )
        plain.append({"role": message["role"], "content": kept})
    return plain, images
