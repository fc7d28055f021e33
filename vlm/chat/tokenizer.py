"""Text to token ids and back, over `tokenizers`.

Special tokens are written by the chat template alone: text that looks like one stays text.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from vlm.chat.files import (
    CONFIG_FILE,
    GENERATION_FILE,
    SPECIAL_TOKENS_FILE,
    TOKENIZER_FILE,
    read_json_object,
    read_utf8,
)
from vlm.errors import UserError

BOS_TOKEN = "<|begin_of_text|>"
END_OF_TEXT_TOKEN = "<|end_of_text|>"
EOT_TOKEN = "<|eot_id|>"
PAD_TOKEN = "<|pad|>"
IMAGE_TOKEN = "<|image|>"
# They follow the trained vocabulary, as in Llama 3; `<|image|>` is the last id, as in Llama 3.2.
SPECIAL_TOKENS = (
    BOS_TOKEN,
    END_OF_TEXT_TOKEN,
    "<|start_header_id|>",
    "<|end_header_id|>",
    EOT_TOKEN,
    PAD_TOKEN,
    IMAGE_TOKEN,
)
# What ends a turn in the tokenizers of Llama-shaped models, most specific first; else `eos_token`.
TURN_END_TOKENS = (EOT_TOKEN, "<|im_end|>", "<|end|>", "<end_of_turn>")
# Further tokens after which such models write nothing.
STOP_TOKENS = (END_OF_TEXT_TOKEN, "<|eom_id|>", "<|endoftext|>", "</s>")
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")

# Llama 3's splitting into words (numbers in groups of up to three digits), but for newlines: they
# stand apart and in pairs. The pair after a header is therefore a token of its own whatever the
# message begins with, and a message's words split the same alone as inside the chat.
WORDS = "|".join(
    (
        r"'(?i:[sdmt]|ll|ve|re)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r"\n\n|\r\n|[\r\n]",
        r" ?[^\s\p{L}\p{N}]+",
        r"[^\S\r\n]+(?!\S)",
        r"\s",
    )
)
# What the template writes as plain text before a message. Training counts it with each text, or
# headers would cost a token a letter in a small vocabulary.
HEADERS = ("user\n\n", "assistant\n\n")

# Not passed on when a foreign folder is saved: the template has its own file, code is never run.
DROPPED_KEYS = ("chat_template", "auto_map")

# Questions repeat, and a look-up is a hundred times faster than splitting a text anew.
MAX_CACHED_CHARACTERS = 128
MAX_CACHED_TEXTS = 50_000


class Tokenizer:
    """A vocabulary with its special tokens.

    Behind the vocabulary are added, where they are missing: the special tokens `needed`, a padding
    token that is not the end of a turn, and `<|image|>`. A model needs embedding rows for them
    (`vocab_size` counts them).

    bos_id: what starts a text; None where the vocabulary has no such token.
    eot_id: what ends a turn.
    end_ids: everything after which generation stops, `eot_id` among it.
    generation: the content of `generation_config.json`. Only its `eos_token_id` is followed, the
        rest is passed on.
    special_ids: every special token.
    added_ids: the tokens added, in the order above.
    vocab_size: one above the highest id.
    named_tokens: `bos_token`, `eos_token`, ... by their names in templates.
    """

    def __init__(
        self,
        definition: str,
        config: Mapping[str, Any],
        generation: Mapping[str, Any] | None = None,
        needed: Sequence[str] = (),
    ) -> None:
        """Build from the contents of `tokenizer.json`, `tokenizer_config.json` and, where there is
        one, `generation_config.json`.

        Args:
            needed: special tokens that the chat template writes.
        Raises:
            UserError: the definition is damaged, no token ends a turn, generation ends at an id
                that there is not, or plain text can become a special token.
        """
        definition, self._config, num_given = _complete(definition, config, needed)
        self._definition = definition
        self._markup = _parse(definition)
        self._plain = _parse(_with_all_special(definition))
        # The switch is not part of the definition and would be lost by pickling `_plain`.
        self._plain.encode_special_tokens = True
        self._special = {
            token.content: index
            for index, token in self._markup.get_added_tokens_decoder().items()
            if token.special
        }
        self.named_tokens = _named_tokens(self._config)
        self.vocab_size = _num_ids(self._markup)
        self.added_ids = tuple(range(num_given, self.vocab_size))
        self.special_ids = tuple(sorted(self._special.values()))
        self.image_id = self.special_id(IMAGE_TOKEN)
        self.pad_id = self.special_id(self.named_tokens["pad_token"])
        self.eot_id = self.special_id(_turn_end(self._special, self.named_tokens))
        self.bos_id = self._special.get(self.named_tokens.get("bos_token", BOS_TOKEN))
        ends = {self._special.get(name) for name in (*STOP_TOKENS, *TURN_END_TOKENS)}
        ends.add(self._special.get(self.named_tokens.get("eos_token", EOT_TOKEN)))
        self.generation = dict(generation or {})
        ends |= _generation_ends(self.generation, self.vocab_size)
        self.end_ids = tuple(sorted(index for index in ends if index is not None))
        self._cache: dict[str, tuple[int, ...]] = {}
        self._lead = self._find_lead()
        self._check_that_text_stays_text()

    @classmethod
    def from_folder(cls, folder: Path, needed: Sequence[str] = ()) -> "Tokenizer":
        """Read a Hugging Face tokenizer folder.

        Args:
            needed: special tokens that are added where the folder lacks them.
        Raises:
            UserError: `tokenizer.json` is missing or damaged, or see the constructor.
        """
        path = folder / TOKENIZER_FILE
        if not path.is_file():
            raise UserError(
                f"{folder} has no {TOKENIZER_FILE}; transformers writes one from older formats: "
                "AutoTokenizer.from_pretrained(old).save_pretrained(new)"
            )
        try:
            named = read_json_object(folder / SPECIAL_TOKENS_FILE)
            config = {key: named[key] for key in NAMED_TOKENS if key in named}
            config |= read_json_object(folder / CONFIG_FILE)
            generation = read_json_object(folder / GENERATION_FILE)
            return cls(read_utf8(path), config, generation, needed)
        except UserError as error:
            raise UserError(f"{folder}: {error}") from error

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Train a byte-level BPE with Llama 3's special tokens.

        The same texts give the same tokenizer. Few texts may give fewer ids than asked for.

        Raises:
            UserError: `vocab_size` has no room for the 256 bytes and the special tokens.
        """
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        smallest = len(alphabet) + len(SPECIAL_TOKENS)
        if vocab_size < smallest:
            raise UserError(
                f"vocab_size is {vocab_size}, needed: at least {smallest}, for {len(alphabet)} "
                f"bytes and {len(SPECIAL_TOKENS)} special tokens"
            )
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL_TOKENS),
            initial_alphabet=alphabet,
            show_progress=False,
        )
        backend.train_from_iterator(_with_headers(texts), trainer)
        backend.add_special_tokens([_special_token(name) for name in SPECIAL_TOKENS])
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS_TOKEN,
            "eos_token": EOT_TOKEN,
            "pad_token": PAD_TOKEN,
            "clean_up_tokenization_spaces": False,
        }
        return cls(backend.to_str(), config)

    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text, never one of a special token.

        Raises:
            UserError: the text holds half a surrogate pair, which no encoding of Unicode has.
        """
        ids = self._cache.get(text)
        if ids is None:
            ids = self._ids(self._plain, text)
            if len(text) <= MAX_CACHED_CHARACTERS:
                if len(self._cache) >= MAX_CACHED_TEXTS:
                    self._cache.clear()
                self._cache[text] = ids
        return list(ids)

    def encode_start(self, text: str) -> list[int]:
        """Return the ids of plain text that begins a row: what starts a text comes first, if
        there is such a token, and the space that some tokenizers put in front of a text.
        """
        start = [] if self.bos_id is None else [self.bos_id]
        return [*start, *_encode(self._plain, text)]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each text.

        One after the other: threads cost more than they bring at the length of a chat, and leave
        forked loader workers with locks that nobody opens.
        """
        return [self.encode(text) for text in texts]

    def encode_markup(self, text: str) -> list[int]:
        """Return the ids of what the chat template wrote, special tokens as such."""
        return list(self._ids(self._markup, text))

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of ids; bytes that form no character become U+FFFD."""
        text: str = self._markup.decode(ids, skip_special_tokens=skip_special)
        return text

    def special_id(self, name: str) -> int:
        """Return the id of a special token.

        Raises:
            UserError: the vocabulary has no such special token.
        """
        if name not in self._special:
            raise UserError(
                f"the tokenizer has no special token {name!r}; it has "
                f"{', '.join(list(self._special)[:8])}{', ...' if len(self._special) > 8 else ''}"
            )
        return self._special[name]

    def check_fits(self, num_embeddings: int) -> None:
        """Check that every id has a row in an embedding of so many.

        Raises:
            UserError: it has too few.
        """
        if self.vocab_size > num_embeddings:
            raise UserError(
                f"the tokenizer has {self.vocab_size} ids, the model {num_embeddings} embedding "
                "rows; raise vocab_size in the model's config"
            )

    @property
    def definition(self) -> str:
        """The content of its `tokenizer.json`."""
        return self._definition

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of what it is built from, in hexadecimal."""
        parts = (self._definition, json.dumps(self._config, sort_keys=True))
        return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the files that it is built from, as transformers reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TOKENIZER_FILE).write_text(self._definition, "utf-8")
        contents = {CONFIG_FILE: self._config, GENERATION_FILE: self.generation}
        for name, content in contents.items():
            if content:
                text = json.dumps(content, indent=2, ensure_ascii=False)
                (folder / name).write_text(text + "\n", "utf-8")

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self._definition, self._config, self.generation)

    def _ids(self, backend: tokenizers.Tokenizer, text: str) -> tuple[int, ...]:
        if self._lead:
            ids = _encode(backend, "\n" + text)
            if ids[: len(self._lead)] == self._lead:
                return ids[len(self._lead) :]
        return _encode(backend, text)

    def _find_lead(self) -> tuple[int, ...]:
        """The ids of a newline where texts get a space in front (as in Llama 2), else nothing.

        A piece from the middle of a chat must not get one; behind a newline it does not.
        """
        newline, letter = _encode(self._plain, "\n"), _encode(self._plain, "a")
        return newline if _encode(self._plain, "\na") != (*newline, *letter) else ()

    def _check_that_text_stays_text(self) -> None:
        unknown = self.named_tokens.get("unk_token")
        for name, index in self._special.items():
            if name != unknown and index in self._ids(self._plain, name):
                raise UserError(
                    f"the tokenizer turns the plain text {name!r} into the special token, so that "
                    "a caption could forge images and turns; use a byte-level BPE tokenizer"
                )


def _with_headers(texts: Iterable[str]) -> Iterator[str]:
    for text, header in zip(texts, cycle(HEADERS), strict=False):
        yield text
        yield header


def _special_token(name: str) -> AddedToken:
    return AddedToken(name, special=True, normalized=False)


def _encode(backend: tokenizers.Tokenizer, text: str) -> tuple[int, ...]:
    try:
        return tuple(backend.encode(text, add_special_tokens=False).ids)
    except (TypeError, UnicodeEncodeError) as error:
        raise UserError(f"{text[:40]!r} is not valid Unicode text: {error}") from error


def _parse(definition: str) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(definition)
    except Exception as error:  # what `tokenizers` raises for a damaged file is a bare Exception
        raise UserError(f"{TOKENIZER_FILE} does not define a tokenizer: {error}") from error
    # A file may ask for both; rows are cut and padded elsewhere.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _num_ids(backend: tokenizers.Tokenizer) -> int:
    """One above the highest id."""
    return 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)


def _complete(
    definition: str, config: Mapping[str, Any], needed: Sequence[str]
) -> tuple[str, dict[str, Any], int]:
    """Add what is needed, a padding token of its own and the image token, where missing.

    Returns:
        Definition and config with them, and how many ids there were without.
    """
    named = _named_tokens(config)
    completed = {key: value for key, value in config.items() if key not in DROPPED_KEYS} | named
    backend = _parse(definition)
    special = {t.content for t in backend.get_added_tokens_decoder().values() if t.special}
    pad = named.get("pad_token")
    if pad not in special or pad in (*TURN_END_TOKENS, named.get("eos_token")):
        candidates = (PAD_TOKEN, "<|finetune_right_pad_id|>")
        pad = next((name for name in candidates if name in special), PAD_TOKEN)
        completed["pad_token"] = pad
    added = [name for name in (*needed, pad, IMAGE_TOKEN) if name not in special]
    if not added:
        return definition, completed, _num_ids(backend)
    num_given = _num_ids(backend)
    backend.add_special_tokens([_special_token(name) for name in added])
    return backend.to_str(), completed, num_given


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The config's named tokens as text; it may describe one with all its settings."""
    named: dict[str, str] = {}
    for key in NAMED_TOKENS:
        value = config.get(key)
        if isinstance(value, Mapping):
            value = value.get("content")
        if isinstance(value, str):
            named[key] = value
    return named


def _turn_end(special: Mapping[str, int], named: Mapping[str, str]) -> str:
    for name in (*TURN_END_TOKENS, named.get("eos_token")):
        if name in special:
            return str(name)
    raise UserError(
        f"no special token ends a turn: needed is {' or '.join(TURN_END_TOKENS)}, "
        f"or an eos_token in {CONFIG_FILE}"
    )


def _generation_ends(generation: Mapping[str, Any], vocab_size: int) -> set[int]:
    """The ids at which `generation_config.json` ends an answer: one, several or none."""
    value = generation.get("eos_token_id")
    ends = value if isinstance(value, list) else [] if value is None else [value]
    for end in ends:
        if type(end) is not int or not 0 <= end < vocab_size:
            raise UserError(
                f"{GENERATION_FILE}: eos_token_id {end!r} is no id of the tokenizer, "
                f"which has 0 to {vocab_size - 1}"
            )
    return set(ends)


def _with_all_special(definition: str) -> str:
    """Mark every added token as special, so that none is found in plain text.

    Templates write some that are not marked. Runs of spaces are words of the vocabulary: they stay.
    """
    content = json.loads(definition)
    added = content.get("added_tokens", [])
    unmarked = [token for token in added if not token["special"] and token["content"].strip()]
    for token in unmarked:
        token["special"] = True
    return json.dumps(content, ensure_ascii=False) if unmarked else definition
