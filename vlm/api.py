"""The public API: load a model folder, ask, caption, chat, stream."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from encoders.tiling import TiledImage
from vlm.adapters.folder import is_adapter_folder, read_adapter
from vlm.answering import Answering, RunningAnswer
from vlm.chat.processor import Processor
from vlm.config import load_config
from vlm.engine.sampling import SamplingConfig
from vlm.engine.scoring import Likelihood
from vlm.errors import UserError
from vlm.images import read_image
from vlm.inputs import Example, batch_order
from vlm.likelihood import Likelihoods
from vlm.messages import ImageSource, as_sequence, question_chat, split_images
from vlm.model import VisionLanguageModel
from vlm.replies import AnswerConfig, Reply, answer_config, checked_reply, whole_reply
from vlm.safety.answer import HeldAnswer
from vlm.safety.config import SafetyConfig
from vlm.safety.policy import Safety
from vlm.weights.folder import COMPONENTS, load_component, read_component, read_folder_config
from vlm.weights.quantized import Saving, parse_quantization
from vlm.weights.quantized import quantize as quantized

# Messages, see `Model.chat`; or a text, which is continued as it stands, without a chat template.
Prompt = str | Sequence[Mapping[str, Any]]

CAPTION_PROMPT = "Describe the image."
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Model:
    """A loaded model: its network and its processor.

    Every method takes the fields of `AnswerConfig` as keywords: `max_tokens`, `temperature`,
    `top_p`, `seed`, `stop` and others. What was computed of pictures and conversations is kept for
    later calls, so the weights must not change behind it. Threads may call it at the same time.

    safety: the policy on what is asked and answered, if there is one. A conversation that it
        refuses raises `vlm.safety.policy.ContentPolicyError`; of an answer that it withholds, its
        notice is the text.
    saving: what rounded weights take, where some were.
    """

    def __init__(
        self,
        network: VisionLanguageModel,
        processor: Processor,
        folder: Path,
        safety: Safety | None = None,
        saving: Saving | None = None,
    ) -> None:
        self.network = network.eval()
        self.processor = processor
        self.folder = folder
        self.safety = safety
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
        return self.answer_batch([(as_sequence(images), question)], **settings)[0]

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

    def prompt_text(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """The text that an answer to a conversation follows, as the model reads it: with what the
        chat template writes, special tokens among it; an image is `<|image|>`.
        """
        ids = self._prompt(messages).input_ids.tolist()
        return self.processor.tokenizer.decode(ids, skip_special=False)

    def choices(
        self, messages: Sequence[Mapping[str, Any]], num_choices: int, **settings: Any
    ) -> list[Reply]:
        """Like `chat`, giving several answers; with a `seed`, each has the next one as its own."""
        seed = answer_config(settings).seed
        seeds = [None if seed is None else (seed + index) % 2**64 for index in range(num_choices)]
        prompts = [self._prompt(messages)] * num_choices
        return self._reply(prompts, settings, num_choices, seeds)

    def stream(self, messages: Sequence[Mapping[str, Any]], **settings: Any) -> Iterator[str]:
        """Like `chat`, giving the answer's text in pieces as it is generated.

        Under a content policy each sentence is held back until it has been checked.
        """
        held = None if self.safety is None else HeldAnswer(self.safety)
        for (answer,) in self._run([self._prompt(messages)], answer_config(settings), 1):
            final = answer.finish_reason is not None
            if held is None:
                yield from answer.text.new_pieces(final)
                continue
            release = held.add("".join(answer.text.new_pieces(final)), final)
            if release.text:
                yield release.text
            if release.blocked:
                return

    def answer_batch(
        self,
        requests: Sequence[tuple[Sequence[ImageSource], str]],
        batch_size: int = 32,
        **settings: Any,
    ) -> list[str]:
        """Answer (images, question) requests, up to `batch_size` at a time; see `chat_batch`."""
        chats = [question_chat(images, question) for images, question in requests]
        return [reply.text for reply in self.chat_batch(chats, batch_size, **settings)]

    def chat_batch(
        self,
        conversations: Sequence[Sequence[Mapping[str, Any]]],
        batch_size: int = 32,
        **settings: Any,
    ) -> list[Reply]:
        """Answer the last messages of many conversations, up to `batch_size` at a time.

        Conversations that show the same objects as images stay together: such an image is read,
        tiled and encoded once.
        """
        chats = [split_images(messages) for messages in conversations]
        if self.safety is not None:
            for messages, images in chats:
                _check_input(self.safety, messages, [read_image(image) for image in images])
        tiled = self._tile_each([image for _, images in chats for image in images])
        prompts = [
            self.processor.encode(
                messages, [tiled[id(image)] for image in images], add_generation_prompt=True
            )
            for messages, images in chats
        ]
        return self._reply_in_order(prompts, batch_size, settings)

    def complete_batch(
        self, texts: Sequence[str], batch_size: int = 32, **settings: Any
    ) -> list[Reply]:
        """Continue raw texts, without the chat template, as a model of text alone is used.

        The replies' texts are what follows, with the whitespace that it begins with.
        """
        prompts = []
        for text in texts:
            ids = torch.tensor(self.processor.tokenizer.encode_start(text), dtype=torch.int64)
            if not len(ids):
                raise UserError("an empty text cannot be continued: the tokenizer has no start")
            prompts.append(Example(ids, torch.zeros(len(ids), dtype=torch.bool), ()))
        return self._reply_in_order(prompts, batch_size, settings, strip=False)

    def _reply_in_order(
        self,
        prompts: Sequence[Example],
        batch_size: int,
        settings: Mapping[str, Any],
        strip: bool = True,
    ) -> list[Reply]:
        """Answer prompts by length; the replies are in the order of the prompts."""
        order = batch_order(
            [len(prompt.input_ids) for prompt in prompts],
            [tuple(map(id, prompt.images)) for prompt in prompts],
        )
        sorted_prompts = [prompts[index] for index in order]
        replies = self._reply(sorted_prompts, settings, batch_size, strip=strip)
        placed = dict(zip(order, replies, strict=True))
        return [placed[index] for index in range(len(prompts))]

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
        chats = [split_images(p) if not isinstance(p, str) else ([], []) for p, _ in requests]
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
        strip: bool = True,
    ) -> list[Reply]:
        answers: list[RunningAnswer] = []
        for running in self._run(prompts, answer_config(settings), max_slots, seeds):
            answers = running
        replies = [whole_reply(*pair, strip) for pair in zip(prompts, answers, strict=True)]
        return [
            reply if self.safety is None else checked_reply(reply, self.safety) for reply in replies
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
        grammar = None
        if config.json_schema is not None:
            grammar = self.answering.grammars.compile(config.json_schema)
        return self.answering.run(
            prompts, samplings, config.max_tokens, config.stop, max_slots, grammar
        )

    def _prompt(self, messages: Sequence[Mapping[str, Any]]) -> Example:
        plain, images = split_images(messages)
        pictures = [read_image(image) for image in images]
        if self.safety is not None:
            _check_input(self.safety, plain, pictures)
        return self.processor.encode(plain, pictures, add_generation_prompt=True)


def load(
    path: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    safety: str | Path | SafetyConfig | None = None,
    quantize: str | Sequence[str] | Mapping[str, str] | None = None,
) -> Model:
    """Load a model folder: one of ours, or one of transformers' Mllama (Llama 3.2 Vision).

    The folder of an adapter is loaded as its base with the adapter merged in.

    Args:
        device: "auto" is the first GPU where there is one, else the CPU.
        dtype: "float32", "bfloat16", "float16"; "auto" is bfloat16 on a GPU and for int4, else
            float32.
        safety: a policy on what is asked and answered, or a YAML file of one; None: no policy.
        quantize: hold the weights of the decoder's layers in "int8" or "int4", or those of the
            parts named: {"decoder": "int4", "output": "int8"}; see vlm/weights/quantized.py.
    Raises:
        UserError: the folder is missing, damaged, holds only a part of a model or one of another
            kind; an adapter's base is not there, or is another model; a classifier of the policy
            cannot be loaded; the weights cannot be rounded so.
    """
    parts = parse_quantization(quantize)
    policy = None
    if safety is not None:
        rules = safety
        if not isinstance(rules, SafetyConfig):
            rules = load_config(SafetyConfig, Path(rules))
        policy = Safety(rules)
    folder = Path(path)
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
    if dtype == "auto" and "int4" in parts.values():
        dtype = "bfloat16"
    weights_dtype = find_dtype(dtype, target)
    processor = Processor.from_folder(weights, config.model.vision)
    processor.tokenizer.check_fits(config.model.decoder.num_embeddings)
    with torch.device("meta"):
        network = VisionLanguageModel(config.model, processor.tokenizer.image_id)
    network.to_empty(device=target).to(weights_dtype)
    for component in COMPONENTS:
        tensors = read_component(weights, component)
        load_component(getattr(network, component), tensors, component, weights)
    if adapter is not None:
        adapter.merge_into(network)
    network.requires_grad_(False)
    saving = quantized(network, parts) if parts else None
    return Model(network, processor, folder, policy, saving)


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


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype that a user names; "auto" is bfloat16 on a GPU, float32 on the CPU.

    Raises:
        UserError: there is no such dtype.
    """
    if name not in (*DTYPES, "auto"):
        raise UserError(f"unknown dtype {name!r}; there are auto, {', '.join(DTYPES)}")
    return DTYPES[name if name != "auto" else ("bfloat16" if device.type == "cuda" else "float32")]


def _check_input(
    safety: Safety, messages: Sequence[Mapping[str, Any]], pictures: Sequence[Image.Image]
) -> None:
    texts = [part["text"] for m in messages for part in m["content"] if "text" in part]
    safety.check_input("\n".join(texts), pictures)
