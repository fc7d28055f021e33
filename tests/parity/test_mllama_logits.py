"""The whole model equals transformers' `MllamaForConditionalGeneration`: logits, words, gradients.

transformers 5 lets text before the first image attend to it (huggingface/transformers#39379): a
row of its mask that forbids everything is turned into one that allows everything. Batches whose
rows all start with an image have no such row and are compared with transformers as it is. The
others are compared with that one fault mended by `close_leak`.

Both sides get the same normalised pixels; `tests/encoders` compares the processing of pictures.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MllamaForConditionalGeneration

from data.collate import ChatBatch
from encoders.tiling import TiledImage, supported_canvases
from training.objectives import NextToken
from vlm.inputs import Example, ModelInputs, stack_examples
from vlm.model import VisionLanguageModel
from vlm.weights.mllama_names import our_name

Make = Callable[..., MllamaForConditionalGeneration]
Write = Callable[..., list[list[int]]]
Copy = Callable[[MllamaForConditionalGeneration], VisionLanguageModel]
Translate = Callable[[VisionLanguageModel, ModelInputs], dict[str, Tensor]]

# Two implementations add the same float32 numbers in another order. Logits are around 1, up to 5;
# a dozen layers leave differences of a few 1e-6.
LOGITS = {"rtol": 0.0, "atol": 2e-5}
PAD_ID = 0

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 10_000.0,
}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10_000.0,
}


@dataclass(frozen=True)
class Case:
    """A model and a batch.

    rows: `i` is an image, `.` a word; "i.i" shows two images.
    canvases: of the images, row by row.
    """

    rows: tuple[str, ...]
    canvases: tuple[tuple[int, int], ...] = ()
    vision: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)

    @property
    def leaks(self) -> bool:
        """Whether transformers lets a text token see an image that it should not."""
        return bool(self.canvases) and not all(row.startswith("i") for row in self.rows)


ONE = ("i.......",)
TWO = ("i....i......",)
MIXED = ("i.........", "i..i..", "iii....", "i...")
MIXED_CANVASES = ((1, 1), (1, 2), (2, 2), (3, 1), (1, 1), (1, 4), (2, 1))
CASES = {
    # Every canvas of four tiles.
    **{f"canvas {r}x{c}": Case(ONE, ((r, c),)) for r, c in supported_canvases(4)},
    "two images": Case(TWO, ((1, 2), (2, 2))),
    "three images": Case(("i..i..i...",), ((2, 1), (1, 1), (1, 3))),
    "adjacent images": Case(("ii..ii...",), ((1, 1), (1, 3), (2, 2), (1, 2))),
    "unequal lengths and image counts": Case(MIXED, MIXED_CANVASES),
    "one tile at most": Case(TWO, ((1, 1), (1, 1)), vision={"max_num_tiles": 1}),
    "two tiles at most": Case(TWO, ((1, 2), (2, 1)), vision={"max_num_tiles": 2}),
    "six tiles at most": Case(MIXED, ((2, 3), *MIXED_CANVASES[1:]), vision={"max_num_tiles": 6}),
    "tiles of 56 pixels": Case(ONE, ((2, 2),), vision={"image_size": 56}),
    "tiles of 112 pixels": Case(ONE, ((1, 2),), vision={"image_size": 112}),
    "patches of 8 in tiles of 40": Case(
        TWO, ((1, 3), (1, 1)), vision={"image_size": 40, "patch_size": 8}
    ),
    "one intermediate state": Case(
        TWO, ((2, 1), (1, 1)), vision={"intermediate_layers_indices": [1]}
    ),
    "intermediate states in another order": Case(
        TWO, ((2, 1), (1, 1)), vision={"intermediate_layers_indices": [2, 0, 1]}
    ),
    "no global layers": Case(TWO, ((2, 2), (1, 2)), vision={"num_global_layers": 0}),
    "vision norm of another eps": Case(ONE, ((1, 2),), vision={"norm_eps": 1e-3}),
    "as many key heads as heads": Case(TWO, ((1, 2), (1, 1)), text={"num_key_value_heads": 4}),
    "one key head": Case(TWO, ((1, 2), (1, 1)), text={"num_key_value_heads": 1}),
    "one cross-attention layer": Case(TWO, ((1, 2), (1, 1)), text={"num_hidden_layers": 5}),
    "text norm of another eps": Case(ONE, ((1, 2),), text={"rms_norm_eps": 1e-3}),
    "llama3 positions": Case(("i" + 60 * ".",), ((1, 2),), text={"rope_parameters": LLAMA3}),
    "linear positions": Case(
        ("i" + 60 * ".",),
        ((1, 2),),
        text={"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "dynamic positions within the trained length": Case(
        ("i" + 60 * ".",),
        ((1, 2),),
        text={"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "dynamic positions beyond the trained length": Case(
        ("i" + 60 * ".",),
        ((1, 2),),
        text={
            "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
            "max_position_embeddings": 24,
        },
    ),
    "yarn positions": Case(("i" + 60 * ".",), ((1, 2),), text={"rope_parameters": YARN}),
    "yarn positions with every field": Case(
        ("i" + 60 * ".",),
        ((1, 2),),
        text={
            "rope_parameters": {
                **YARN,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "mscale": 0.7,
                "mscale_all_dim": 1.3,
                "truncate": False,
            }
        },
    ),
    "text only": Case(("........", "...")),
    "words before the image": Case(("....i.....",), ((1, 2),)),
    "an image in a later turn and a row without": Case(
        ("...i......", ".......", "..ii.i..", "i..."),
        ((1, 1), (2, 2), (1, 2), (3, 1), (1, 1)),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_logits_equal_transformers(
    case: Case, make_mllama: Make, ours_of: Copy, mllama_inputs: Translate
) -> None:
    theirs = make_mllama(0, case.vision, case.text)
    ours = ours_of(theirs)
    inputs, _ = batch_of(case, ours)
    if case.leaks:
        close_leak(theirs)
    logits = ours.decoder.logits(ours(inputs))
    expected = theirs(**mllama_inputs(ours, inputs)).logits
    real = torch.arange(logits.shape[1]) < inputs.lengths.unsqueeze(1)
    assert logits[real].std() > 0.5
    # What stands at padding is undefined on both sides.
    torch.testing.assert_close(logits[real], expected[real], **LOGITS)


def test_at_least_24_cases_are_compared_with_transformers_as_it_is() -> None:
    assert sum(not case.leaks for case in CASES.values()) >= 24


def test_a_tied_head_equals_one_that_copies_the_embeddings(
    make_mllama: Make, ours_of: Copy, mllama_inputs: Translate
) -> None:
    theirs = make_mllama()
    untied = ours_of(theirs)
    embeddings = theirs.model.language_model.embed_tokens.weight
    theirs.lm_head.weight.copy_(embeddings[: theirs.config.text_config.vocab_size])
    decoder = untied.config.decoder.model_copy(update={"tie_embeddings": True})
    ours = VisionLanguageModel(
        untied.config.model_copy(update={"decoder": decoder}), untied.image_token_id
    )
    state = {k: v for k, v in untied.state_dict().items() if k != "decoder.lm_head.weight"}
    ours.load_state_dict(state)
    inputs, _ = batch_of(CASES["two images"], ours)
    logits = ours.requires_grad_(False).decoder.logits(ours(inputs))
    expected = theirs(**mllama_inputs(ours, inputs)).logits
    # Unit embeddings make logits six times as large as a head of deviation 32 ** -0.5.
    torch.testing.assert_close(logits, expected, rtol=0.0, atol=6 * LOGITS["atol"])


def test_transformers_lets_words_see_a_later_image_and_we_do_not(
    make_mllama: Make, ours_of: Copy, mllama_inputs: Translate
) -> None:
    """If this fails for transformers, it has mended the leak: drop `close_leak`."""
    theirs = make_mllama()
    ours = ours_of(theirs)
    case = CASES["words before the image"]
    inputs, other = batch_of(case, ours)[0], batch_of(case, ours, seed=1)[0]
    other = ModelInputs(inputs.input_ids, inputs.lengths, other.images)
    before = case.rows[0].index("i")

    def change(model: Callable[[ModelInputs], Tensor]) -> Tensor:
        return (model(inputs) - model(other))[0, :before].abs().amax()

    assert change(ours) == 0
    assert change(lambda batch: theirs(**mllama_inputs(ours, batch)).logits) > 1e-2
    close_leak(theirs)
    assert change(lambda batch: theirs(**mllama_inputs(ours, batch)).logits) == 0


def test_greedy_tokens_equal_transformers_generate(
    make_mllama: Make, ours_of: Copy, mllama_inputs: Translate, greedy_tokens: Write
) -> None:
    theirs = make_mllama(1, text={"rope_parameters": LLAMA3})
    ours = ours_of(theirs)
    rows = ("i...", "i.......", "ii.....", "i..i....", "..i....", "......", "...i.i", "i.i.i")
    canvases = (*MIXED_CANVASES, (2, 2), (1, 3), (2, 1), (1, 1), (4, 1))
    _, examples = batch_of(Case(rows, canvases), ours)
    close_leak(theirs)
    written = greedy_tokens(ours, examples, 64)
    # Ours run as one batch, theirs a row at a time: padding on the left is another computation.
    for tokens, example in zip(written, examples, strict=True):
        prompt = mllama_inputs(ours, stack_examples([example], PAD_ID))
        words = theirs.generate(**prompt, max_new_tokens=64, do_sample=False)[0]
        assert len(tokens) == 64 and tokens == words[len(example.input_ids) :].tolist()
    assert len(set(map(tuple, written))) == 8


def test_greedy_tokens_beyond_the_trained_length_equal_transformers(
    make_mllama: Make, ours_of: Copy, mllama_inputs: Translate, greedy_tokens: Write
) -> None:
    """Dynamic positions change with every token, and keys keep those that they were made with."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    theirs = make_mllama(2, text={"rope_parameters": rope, "max_position_embeddings": 24})
    ours = ours_of(theirs)
    inputs, examples = batch_of(Case(("i" + 14 * ".",), ((1, 2),)), ours)
    (tokens,) = greedy_tokens(ours, examples, 48)
    words = theirs.generate(**mllama_inputs(ours, inputs), max_new_tokens=48, do_sample=False)
    assert tokens == words[0, 15:].tolist()


def test_loss_and_every_gradient_equal_transformers(
    make_mllama: Make, ours_of: Copy, mllama_inputs: Translate
) -> None:
    theirs = make_mllama()
    ours = ours_of(theirs)
    case = CASES["an image in a later turn and a row without"]
    inputs, examples = batch_of(case, ours)
    close_leak(theirs)
    mask = nn.utils.rnn.pad_sequence([e.loss_mask for e in examples], batch_first=True)
    labels = inputs.input_ids.masked_fill(~mask, -100)

    ours.requires_grad_(True)
    loss = NextToken(ours).loss(ChatBatch(("a", "b", "c", "d"), inputs, mask))
    mean = loss.total / loss.weight
    mean.backward()
    theirs.requires_grad_(True)
    logits = theirs(**mllama_inputs(ours, inputs)).logits
    # As transformers' own loss: shifted by one, the mean over what is supervised.
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    expected.backward()

    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=0.0)
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        mine, reference = gradients.pop(our_name(name)), parameter.grad
        assert mine is not None and reference is not None and reference.any(), name
        # Sums over a batch in float32: relative to the largest entry of each tensor.
        difference = (mine - reference).abs().max() / reference.abs().max()
        assert difference <= 1e-4, (name, difference)
    assert gradients == {}


def batch_of(
    case: Case, model: VisionLanguageModel, seed: int = 0
) -> tuple[ModelInputs, list[Example]]:
    """Random words and pixels where a case has them; every word but the first is supervised."""
    generator = torch.Generator().manual_seed(seed)
    vision = model.config.vision
    canvases = iter(case.canvases)
    examples = []
    for row in case.rows:
        words = torch.randint(3, model.config.decoder.vocab_size, (len(row),), generator=generator)
        is_image = torch.tensor([letter == "i" for letter in row])
        loss_mask = ~is_image
        loss_mask[0] = False
        images = tuple(
            random_image(next(canvases), vision.tile_size_px, vision.max_num_tiles, generator)
            for _ in range(row.count("i"))
        )
        examples.append(
            Example(words.masked_fill(is_image, model.image_token_id), loss_mask, images)
        )
    assert next(canvases, None) is None
    return stack_examples(examples, PAD_ID), examples


def random_image(
    canvas: tuple[int, int], tile_size_px: int, max_num_tiles: int, generator: torch.Generator
) -> TiledImage:
    shape = canvas[0] * canvas[1], 3, tile_size_px, tile_size_px
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return TiledImage(pixels, supported_canvases(max_num_tiles).index(canvas) + 1, canvas)


def close_leak(model: MllamaForConditionalGeneration) -> None:
    """Let the attention of words that see no image add nothing, as their MLP adds nothing."""
    for layer in model.model.language_model.layers:
        if not hasattr(layer, "cross_attn"):
            continue
        sees: list[Tensor | None] = [None]

        def remember(
            _: nn.Module, __: Any, call: dict[str, Any], sees: list[Tensor | None] = sees
        ) -> None:
            sees[0] = call["full_text_row_masked_out_mask"]

        def silence(_: nn.Module, __: Any, output: Any, sees: list[Tensor | None] = sees) -> Any:
            return output if sees[0] is None else (output[0] * sees[0][:, 0], *output[1:])

        layer.register_forward_pre_hook(remember, with_kwargs=True)
        layer.cross_attn.register_forward_hook(silence)
