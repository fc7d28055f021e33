"""The align stage from the folder of an LLM: frozen to the bit, and a model that answers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

import vlm
from training.config import TrainConfig
from training.dry_run import describe_run
from training.run import train_stage
from training.setup import build_setup
from vlm.chat.template import LLAMA3_TEMPLATE
from vlm.config import load_config
from vlm.errors import UserError
from vlm.weights.folder import read_component, read_folder_config

MakeConfig = Callable[..., TrainConfig]
NUM_IDS = 257


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model (no chat template) whose embeddings have more rows than its tokenizer ids."""
    folder = tmp_path_factory.mktemp("llm")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=NUM_IDS + 7,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=NUM_IDS - 1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    (folder / "tokenizer.json").write_text(backend.to_str(), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return folder


@pytest.fixture(scope="module")
def align_file(
    llm: Path, parents: Path, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An align configuration that names the LLM twice: for its shape and for its weights."""
    folder = tmp_path_factory.mktemp("run")
    start = {"decoder": llm, "encoder": parents / "encoder"}
    data = {"max_tokens": 500}
    config = make_config("align", folder / "out", init_from=start, data=data)
    plain = config.model_dump(mode="json")
    plain["model"]["decoder"] = str(llm)
    (folder / "align.yaml").write_text(yaml.safe_dump(plain))
    return folder / "align.yaml"


@pytest.fixture(scope="module")
def aligned(align_file: Path) -> Path:
    """The folder of the finished stage."""
    config = load_config(TrainConfig, align_file)
    train_stage(config)
    return config.out


def test_the_llm_stays_as_it_was_and_the_cross_attention_learns(
    aligned: Path, align_file: Path
) -> None:
    fresh = build_setup(load_config(TrainConfig, align_file)).modules["decoder"].state_dict()
    trained = read_component(aligned, "decoder")
    crossing = {name for name in fresh if name.startswith("layers.3.")}
    assert len(fresh) == len(trained) and len(crossing) > 10
    for name in set(fresh) - crossing:
        assert torch.equal(fresh[name], trained[name]), name
    assert trained["layers.3.attn_gate"] != 0


def test_the_folder_answers_and_never_writes_an_image_token(aligned: Path) -> None:
    model = vlm.load(aligned, device="cpu", dtype="float32")
    decoder, tokenizer = model.network.decoder, model.processor.tokenizer
    # All new tokens came to lie in rows that the LLM had and did not use.
    assert decoder.config.vocab_size == NUM_IDS + 7 and decoder.config.num_extra_embeddings == 0
    assert tokenizer.image_id < decoder.config.vocab_size
    picture = Image.new("RGB", (24, 24), "red")
    assert isinstance(model.ask(picture, "what colour?", max_tokens=4), str)
    # Whatever the hidden state, <|image|> or a row of no token is the likeliest.
    towards = torch.randn(32, generator=torch.Generator().manual_seed(0))
    rows = decoder.embed_tokens.weight
    for sign in (1, -1):
        rows.zero_()
        rows[tokenizer.image_id] = sign * towards
        rows[decoder.config.vocab_size - 1] = -sign * towards
        assert model.ask(picture, "what colour?", max_tokens=4) == "!!!!"  # of id 0


def test_the_folder_holds_the_extended_tokenizer_and_a_template(aligned: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(aligned)
    names = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>", "<|image|>"]
    ids = list(range(NUM_IDS, NUM_IDS + 5))
    assert theirs.convert_tokens_to_ids(names) == ids
    assert theirs.convert_tokens_to_ids("<|endoftext|>") == NUM_IDS - 1
    assert (aligned / "chat_template.jinja").read_text() == LLAMA3_TEMPLATE
    assert read_folder_config(aligned).model.decoder.attention_bias == "qkv"


def test_the_notes_are_shown_with_the_parts(llm: Path, align_file: Path) -> None:
    text = describe_run(load_config(TrainConfig, align_file))
    assert f"decoder: the LLM of {llm}, with new cross-attention layers at 3\n" in text
    assert (
        "gains <|start_header_id|><|end_header_id|><|eot_id|><|pad|><|image|> from id 257" in text
    )


def test_a_stated_shape_that_is_not_the_llms_is_refused_by_field(
    align_file: Path, tmp_path: Path
) -> None:
    changes = ["model.decoder.norm_eps=0.5", "model.decoder.num_extra_embeddings=2"]
    config = load_config(TrainConfig, align_file, changes)
    with pytest.raises(UserError) as info:
        train_stage(config.model_copy(update={"out": tmp_path / "out"}))
    assert "model.decoder.norm_eps is 0.5 here and 1e-06 there" in str(info.value)
    assert "model.decoder.num_extra_embeddings is 2 here and 0 there" in str(info.value)
    assert not (tmp_path / "out").exists()
