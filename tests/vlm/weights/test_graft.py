"""Grafted LLMs: whatever the family, the decoder writes what its LLM writes."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from training.config import TrainConfig
from vlm.chat.processor import Processor
from vlm.chat.tokenizer import EOT_TOKEN, IMAGE_TOKEN
from vlm.config import PACKAGE_ROOT, VLMConfig, load_config
from vlm.decoder.cache import TextCache
from vlm.decoder.stack import Decoder, ImageContext
from vlm.errors import UserError
from vlm.inputs import Example
from vlm.model import VisionLanguageModel, row_positions
from vlm.weights.graft import graft_llm
from vlm.weights.llm import num_layers_with_cross_attention, read_llm

# The same sums by other kernels: float32 rounding of logits of up to about 5.
TOLERANCE = 2e-5
# Bytes, and the special tokens that the LLM's own tokenizer has.
OWN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NUM_IDS = 256 + len(OWN_TOKENS)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SHAPE = {
    "vocab_size": NUM_IDS,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": NUM_IDS - 1,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
# The base grows beyond `max_position_embeddings`, which is the trained length here.
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}


@dataclass(frozen=True)
class Family:
    """A kind of LLM: its classes and what its configuration adds to `SHAPE`."""

    config: type
    model: type
    extra: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "llama": Family(LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 4}),
    "llama 3": Family(LlamaConfig, LlamaForCausalLM, {"rope_parameters": LLAMA3_ROPE}),
    "llama with biases": Family(LlamaConfig, LlamaForCausalLM, {"attention_bias": True}),
    "llama with linear rope": Family(LlamaConfig, LlamaForCausalLM, {"rope_parameters": LINEAR}),
    "llama with dynamic rope": Family(
        LlamaConfig,
        LlamaForCausalLM,
        {"rope_parameters": DYNAMIC, "max_position_embeddings": 32},
    ),
    "mistral": Family(MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "mistral with a window": Family(MistralConfig, MistralForCausalLM, {"sliding_window": 64}),
    # Rows without a token: the first becomes that of <|image|>.
    "qwen2": Family(Qwen2Config, Qwen2ForCausalLM, {"vocab_size": NUM_IDS + 5}),
    "qwen2 with yarn": Family(Qwen2Config, Qwen2ForCausalLM, {"rope_parameters": YARN}),
    "qwen3": Family(
        Qwen3Config,
        Qwen3ForCausalLM,
        {"head_dim": 16, "tie_word_embeddings": True, "vocab_size": NUM_IDS + 1},
    ),
    "smollm2": Family(LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": True}),
}


def make_llm(folder: Path, family: Family, **changes: Any) -> PreTrainedModel:
    """Save a random model with its tokenizer; norms and biases are random too."""
    torch.manual_seed(0)
    config = family.config(**{**SHAPE, **family.extra, **changes})
    model: PreTrainedModel = family.model(config).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def write_tokenizer(folder: Path, template: str | None = CHATML) -> None:
    """A byte-level tokenizer; without a template it is that of a base model."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken(name, special=True, normalized=False) for name in OWN_TOKENS])
    (folder / "tokenizer.json").write_text(backend.to_str(), "utf-8")
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))


def grafted(folder: Path) -> Decoder:
    torch.manual_seed(1)
    decoder = Decoder(read_llm(folder).config)
    graft_llm(decoder, folder)
    return decoder.requires_grad_(False).eval()


@pytest.fixture(params=FAMILIES, scope="module")
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[PreTrainedModel, Decoder]:
    """An LLM of each family, and the decoder grafted from its folder."""
    folder = tmp_path_factory.mktemp("llm")
    llm = make_llm(folder, FAMILIES[request.param])
    return llm, grafted(folder)


@pytest.fixture
def llm_folder(tmp_path: Path) -> Path:
    make_llm(tmp_path, FAMILIES["llama"])
    return tmp_path


def input_ids(length: int = 60) -> Tensor:
    return torch.randint(NUM_IDS, (2, length), generator=torch.Generator().manual_seed(2))


def images(decoder: Decoder, length: int) -> ImageContext:
    tokens = torch.randn(2, 5, decoder.config.hidden_size)
    mask = torch.zeros(2, length, 5, dtype=torch.bool)
    mask[0, 2:] = True
    return ImageContext(tokens, mask)


def test_logits_equal_the_llms(pair: tuple[PreTrainedModel, Decoder]) -> None:
    llm, decoder = pair
    ids = input_ids()
    expected = llm(ids).logits[..., :NUM_IDS]
    assert 1 < expected.abs().max() < 50
    logits = decoder.logits(decoder(ids, row_positions(ids), None))[..., :NUM_IDS]
    torch.testing.assert_close(logits, expected, rtol=0.0, atol=TOLERANCE)


def test_closed_gates_show_no_image(pair: tuple[PreTrainedModel, Decoder]) -> None:
    _, decoder = pair
    ids = input_ids()
    without = decoder(ids, row_positions(ids), None)
    context = images(decoder, ids.shape[1])
    assert torch.equal(decoder(ids, row_positions(ids), context), without)
    gate = decoder.layers[3].get_parameter("attn_gate")
    torch.nn.init.ones_(gate)
    opened = decoder(ids, row_positions(ids), context)
    torch.nn.init.zeros_(gate)
    assert not torch.equal(opened, without)


def test_cached_decoding_equals_full(pair: tuple[PreTrainedModel, Decoder]) -> None:
    _, decoder = pair
    ids = input_ids(12)
    positions = row_positions(ids)
    expected = decoder(ids, positions, None)
    cache = TextCache(decoder.config, 2, 12, ids.device, torch.float32)
    pieces = [
        decoder(ids[:, start:end], positions[:, start:end], None, cache.rows(0, 2, end))
        for start, end in ((0, 7), (7, 8), (8, 12))
    ]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=0.0, atol=TOLERANCE)


def test_greedy_generation_equals_the_llms(
    pair: tuple[PreTrainedModel, Decoder],
    tiny_config: VLMConfig,
    greedy_tokens: Callable[..., list[list[int]]],
) -> None:
    llm, decoder = pair
    vision = VisionLanguageModel(tiny_config, NUM_IDS)
    vision.decoder = decoder
    ids = input_ids(8)
    prompts = [Example(row, torch.zeros(8, dtype=torch.bool), ()) for row in ids]
    tokenless = list(range(NUM_IDS, decoder.config.vocab_size))
    ours = torch.tensor(greedy_tokens(vision, prompts, 24, suppressed_ids=tokenless))
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    theirs = llm.generate(ids, max_new_tokens=24, suppress_tokens=tokenless or None, **settings)
    assert torch.equal(ours, theirs[:, 8:])


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "smollm2"])
def test_new_tokens_start_at_the_mean_and_old_rows_stay(name: str, tmp_path: Path) -> None:
    llm = make_llm(tmp_path, FAMILIES[name])
    decoder = grafted(tmp_path)
    vocab_size, own = llm.config.vocab_size, llm.get_input_embeddings().weight
    num_rows = max(vocab_size, NUM_IDS + 1)
    assert decoder.config.vocab_size == vocab_size
    assert len(decoder.embed_tokens.weight) == num_rows
    tables = [(decoder.embed_tokens.weight, own)]
    if not decoder.config.tie_embeddings:
        tables.append((decoder.lm_head.weight, llm.get_output_embeddings().weight))
    for ours, theirs in tables:
        mean = theirs[:NUM_IDS].mean(dim=0)
        assert torch.equal(ours[:NUM_IDS], theirs[:NUM_IDS])
        for row in ours[NUM_IDS : NUM_IDS + 1]:  # <|image|>; an untied head may have none
            # Sums in another order.
            torch.testing.assert_close(row, mean, rtol=0.0, atol=1e-6)
        assert torch.equal(ours[NUM_IDS + 1 :], theirs[NUM_IDS + 1 :])


def test_a_base_models_turns_can_be_written_and_its_image_token_cannot(tmp_path: Path) -> None:
    make_llm(tmp_path, FAMILIES["smollm2"])
    write_tokenizer(tmp_path, template=None)
    llm = read_llm(tmp_path)
    tokenizer = llm.tokenizer
    added = ["<|start_header_id|>", "<|end_header_id|>", EOT_TOKEN, "<|endoftext|>", IMAGE_TOKEN]
    ids = [tokenizer.special_id(name) for name in added]
    assert ids == [NUM_IDS, NUM_IDS + 1, NUM_IDS + 2, 256, NUM_IDS + 3]
    # The head covers the end of a turn; <|image|> is an input-only row behind it.
    assert llm.config.vocab_size == NUM_IDS + 3 and llm.config.num_extra_embeddings == 1
    decoder = grafted(tmp_path)
    assert decoder.logits(torch.zeros(1, 32)).shape == (1, NUM_IDS + 3)


def test_the_tokenizer_keeps_its_ids_and_text_stays_text(llm_folder: Path) -> None:
    own = Backend.from_file(str(llm_folder / "tokenizer.json"))
    tokenizer = read_llm(llm_folder).tokenizer
    for text in ("How many?", "naïve 日本", "<|im_start|>"):
        assert tokenizer.encode_markup(text) == own.encode(text).ids
    assert tokenizer.added_ids == (NUM_IDS,) == (tokenizer.image_id,)
    assert tokenizer.pad_id == own.token_to_id("<|endoftext|>")
    ids = tokenizer.encode("<|image|><|im_end|>")
    assert set(ids).isdisjoint(tokenizer.special_ids)
    assert tokenizer.decode(ids) == "<|image|><|im_end|>"


def test_a_chat_model_keeps_its_template(llm_folder: Path, tiny_config: VLMConfig) -> None:
    processor = Processor.from_folder(llm_folder, tiny_config.vision)
    assert processor.template.source == CHATML
    row = processor.encode([{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    text = processor.tokenizer.decode(row.input_ids.tolist(), skip_special=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_sharded_folder_gives_the_same_decoder(llm_folder: Path) -> None:
    whole = grafted(llm_folder).state_dict()
    llm = LlamaForCausalLM.from_pretrained(llm_folder)
    (llm_folder / "model.safetensors").unlink()
    llm.save_pretrained(llm_folder, max_shard_size="20KB")
    assert len(list(llm_folder.glob("model-*.safetensors"))) > 2
    sharded = grafted(llm_folder).state_dict()
    assert all(torch.equal(sharded[name], whole[name]) for name in whole)


def test_a_folder_without_prefix_and_with_derived_tables_is_read(tmp_path: Path) -> None:
    llm = make_llm(tmp_path, FAMILIES["smollm2"])
    expected = grafted(tmp_path).state_dict()
    tensors = {name.removeprefix("model."): t for name, t in llm.model.state_dict().items()}
    table = {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(tensors | table, tmp_path / "model.safetensors")
    found = grafted(tmp_path).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_half_precision_weights_arrive_as_they_are(tmp_path: Path) -> None:
    llm = make_llm(tmp_path, FAMILIES["qwen2"])
    llm.to(torch.bfloat16).save_pretrained(tmp_path)
    decoder = grafted(tmp_path)
    ours = decoder.layers[4].get_parameter("self_attn.q_proj.weight")
    assert ours.dtype == torch.float32
    assert torch.equal(ours, llm.model.layers[3].self_attn.q_proj.weight.float())


def test_every_tensor_is_accounted_for(llm_folder: Path) -> None:
    path = llm_folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.3.mlp.up_proj.weight"]
    tensors["model.norm.weight"] = torch.ones(31)
    tensors["score.weight"] = torch.ones(2, 32)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, path)
    with pytest.raises(UserError) as info:
        grafted(llm_folder)
    for problem in (
        "model.layers.3.mlp.up_proj.weight is missing (needed: [40, 32])",
        "model.norm.weight is [31], needed: [32]",
        "score.weight has no place in the model",
        "lm_head.weight is of dtype F8_E4M3",
    ):
        assert problem in str(info.value)


def test_a_tied_head_in_the_file_must_be_the_embeddings(tmp_path: Path) -> None:
    llm = make_llm(tmp_path, FAMILIES["smollm2"])
    path = tmp_path / "model.safetensors"
    embeddings = llm.get_input_embeddings().weight
    save_file(load_file(path) | {"lm_head.weight": embeddings.clone()}, path)
    assert torch.equal(grafted(tmp_path).embed_tokens.weight[:NUM_IDS], embeddings)
    save_file(load_file(path) | {"lm_head.weight": embeddings + 1}, path)
    with pytest.raises(UserError, match=r"lm_head\.weight differs from model\.embed_tokens"):
        grafted(tmp_path)


def test_a_decoder_of_another_shape_is_refused_by_field(llm_folder: Path) -> None:
    config = read_llm(llm_folder).config
    decoder = Decoder(config.model_copy(update={"rope_theta": 5.0, "qk_norm": True}))
    with pytest.raises(UserError) as info:
        graft_llm(decoder, llm_folder)
    for problem in (
        "model.decoder.rope_theta is 5.0 here and 10000.0 there",
        "model.decoder.qk_norm is True here and False there",
    ):
        assert problem in str(info.value)


def test_a_sliding_window_limits_the_positions_and_is_told(tmp_path: Path) -> None:
    make_llm(tmp_path, FAMILIES["mistral with a window"])
    llm = read_llm(tmp_path)
    assert llm.config.max_positions == 64
    assert "sliding_window" in llm.notes[0] and "64, not 128" in llm.notes[0]
    edit_config(tmp_path, sliding_window=128)
    assert read_llm(tmp_path).config.max_positions == 128


@pytest.mark.parametrize("in_use", [False, True])
def test_only_a_window_in_use_limits_qwen(tmp_path: Path, in_use: bool) -> None:
    changes = {"sliding_window": 64, "max_window_layers": 3, "use_sliding_window": in_use}
    make_llm(tmp_path, FAMILIES["qwen2"], **changes)
    assert read_llm(tmp_path).config.max_positions == (64 if in_use else 128)
    # As older files have it, which do not list the kinds of layers.
    edit_config(tmp_path, layer_types=None, sliding_window=64)
    assert read_llm(tmp_path).config.max_positions == (64 if in_use else 128)


def test_older_spellings_of_rotary_scaling_are_read(llm_folder: Path) -> None:
    older = {"rope_parameters": None, "rope_theta": 5e5}
    edit_config(llm_folder, **older, rope_scaling={"type": "linear", "factor": 2.0})
    config = read_llm(llm_folder).config
    assert config.rope_theta == 5e5 and config.rope_scaling is not None
    assert (config.rope_scaling.kind, config.rope_scaling.factor) == ("linear", 2.0)


def test_ends_that_the_tokenizer_does_not_know_are_told(llm_folder: Path) -> None:
    edit_config(llm_folder, eos_token_id=[NUM_IDS - 1, 7])
    assert "at id 7" in read_llm(llm_folder).notes[-1]


@pytest.mark.parametrize("num_self_layers", range(4, 90))
def test_every_fourth_layer_of_the_llm_gets_a_cross_attention_layer_behind_it(
    num_self_layers: int, tiny_config: VLMConfig
) -> None:
    num_layers = num_layers_with_cross_attention(num_self_layers)
    decoder = tiny_config.decoder.model_copy(update={"num_layers": num_layers})
    crossing = decoder.cross_attention_layers
    assert num_layers - len(crossing) == num_self_layers
    assert len(crossing) == num_self_layers // 4 and crossing[-1] < num_layers - 1


def test_thirty_two_layers_give_forty() -> None:
    assert num_layers_with_cross_attention(32) == 40


# As their folders on the hub have them, but for names of files and versions.
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Llama-3.2-1B": (
        {
            "model_type": "llama",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "eos_token_id": 128001,
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 2048,
            "initializer_range": 0.02,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "mlp_bias": False,
            "num_attention_heads": 32,
            "num_hidden_layers": 16,
            "num_key_value_heads": 8,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": 128256,
        },
        {"num_layers": 20, "max_positions": 131072, "tie_embeddings": True},
    ),
    "Mistral-7B-v0.1": (
        {
            "model_type": "mistral",
            "hidden_act": "silu",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "num_attention_heads": 32,
            "num_hidden_layers": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        {"num_layers": 40, "max_positions": 4096, "head_size": 128},
    ),
    "Qwen2.5-0.5B": (
        {
            "model_type": "qwen2",
            "attention_dropout": 0.0,
            "hidden_act": "silu",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "max_window_layers": 24,
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "use_mrope": False,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        {"num_layers": 30, "max_positions": 32768, "attention_bias": "qkv", "rope_theta": 1e6},
    ),
    "Qwen3-0.6B": (
        {
            "model_type": "qwen3",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "head_dim": 128,
            "hidden_act": "silu",
            "hidden_size": 1024,
            "intermediate_size": 3072,
            "max_position_embeddings": 40960,
            "max_window_layers": 28,
            "num_attention_heads": 16,
            "num_hidden_layers": 28,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        {"num_layers": 35, "head_size": 128, "qk_norm": True, "attention_bias": None},
    ),
    "SmolLM2-135M-Instruct": (
        {
            "model_type": "llama",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": 576,
            "initializer_range": 0.041666666666666664,
            "intermediate_size": 1536,
            "is_llama_config": True,
            "max_position_embeddings": 8192,
            "mlp_bias": False,
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_scaling": None,
            "rope_theta": 100000,
            "tie_word_embeddings": True,
            "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16"}},
            "use_cache": False,
            "vocab_size": 49152,
        },
        {"num_layers": 37, "head_size": 64, "rope_theta": 1e5, "num_extra_embeddings": 0},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_read(name: str, tmp_path: Path) -> None:
    content, expected = PUBLISHED[name]
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = read_llm(tmp_path).config
    assert config.model_dump(include=set(expected)) == expected
    assert config.vocab_size == content["vocab_size"]


def test_the_example_configuration_has_the_shape_of_its_llm(tmp_path: Path) -> None:
    content, _ = PUBLISHED["SmolLM2-135M-Instruct"]
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(content))
    path = PACKAGE_ROOT / "configs" / "graft" / "smollm2_135m.yaml"
    stated = load_config(TrainConfig, path).model.decoder
    # Its tokenizer has an id for each row, this one has not: the new tokens then need their own.
    assert stated == read_llm(tmp_path).config.model_copy(update={"num_extra_embeddings": 2})


REFUSED = {
    "model_type": {"model_type": "gemma"},
    "hidden_act": {"hidden_act": "gelu"},
    "mlp_bias": {"mlp_bias": True},
    "attention_dropout": {"attention_dropout": 0.1},
    "quantization_config": {"quantization_config": {"quant_method": "gptq"}},
    "auto_map": {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
    "num_hidden_layers": {"num_hidden_layers": 3},
    "partial_rotary_factor": {"partial_rotary_factor": 0.5},
    "'longrope'": {
        "rope_parameters": {
            "rope_type": "longrope",
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "factor": 2.0,
            "rope_theta": 10_000.0,
        }
    },
    "rope_parameters.mrope_section": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2]}
    },
    "rope_parameters.original_max_position_embeddings": {
        "rope_parameters": DYNAMIC | {"original_max_position_embeddings": 16}
    },
    "layer_types": {"model_type": "qwen2", "layer_types": ["linear_attention"] * 6},
    "attention_bias": {"model_type": "qwen2", "attention_bias": True},
    # Of other families, or of none: transformers' Llama would not read them.
    "sliding_window": {"sliding_window": 16},
    "logit_scale": {"logit_scale": 0.5},
    "num_attention_heads": {"num_attention_heads": "four"},
    "vocab_size": {"vocab_size": 0},
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_the_decoder_cannot_express_is_refused_by_name(field: str, llm_folder: Path) -> None:
    edit_config(llm_folder, **REFUSED[field])
    with pytest.raises(UserError, match=field) as info:
        read_llm(llm_folder)
    assert str(llm_folder) in str(info.value) and "\n" not in str(info.value)
