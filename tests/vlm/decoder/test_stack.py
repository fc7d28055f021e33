"""The decoder stack: a Llama as long as gates are closed, whatever the images."""

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from vlm.config import VLMConfig
from vlm.decoder.config import DecoderConfig
from vlm.decoder.stack import CrossAttentionBlock, Decoder, ImageContext
from vlm.model import row_positions

BATCH, LENGTH, IMAGE_TOKENS = 2, 7, 5


@pytest.fixture
def config(tiny_config: VLMConfig) -> DecoderConfig:
    torch.manual_seed(0)
    return tiny_config.decoder


@pytest.fixture
def decoder(config: DecoderConfig) -> Decoder:
    return Decoder(config).requires_grad_(False)


@pytest.fixture
def input_ids(config: DecoderConfig) -> Tensor:
    return torch.randint(config.vocab_size, (BATCH, LENGTH))


@pytest.fixture
def images(config: DecoderConfig) -> ImageContext:
    """The first row sees images from its third token on, the second sees none."""
    mask = torch.zeros(BATCH, LENGTH, IMAGE_TOKENS, dtype=torch.bool)
    mask[0, 2:] = True
    return ImageContext(torch.randn(BATCH, IMAGE_TOKENS, config.hidden_size), mask)


def open_gates(decoder: Decoder) -> Decoder:
    for name, parameter in decoder.named_parameters():
        if name.endswith("_gate"):
            torch.nn.init.ones_(parameter)
    return decoder


def as_llama(decoder: Decoder) -> LlamaForCausalLM:
    """transformers' Llama with the weights of the stack's self-attention layers."""
    config = decoder.config
    own = [i for i in range(config.num_layers) if i not in config.cross_attention_layers]
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=len(own),
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_theta": config.rope_theta, "rope_type": "default"},
            tie_word_embeddings=config.tie_embeddings,
        )
    )
    weights: dict[str, Tensor] = {}
    for name, tensor in decoder.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "layers":
            index, _, rest = rest.partition(".")
            if int(index) in own:
                weights[f"model.layers.{own.index(int(index))}.{rest}"] = tensor
        else:
            weights[name if part == "lm_head" else f"model.{name}"] = tensor
    weights["lm_head.weight"] = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    llama.load_state_dict(weights)
    return llama.requires_grad_(False).eval()


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_a_grafted_stack_gives_its_llamas_logits(
    config: DecoderConfig, input_ids: Tensor, images: ImageContext, tie_embeddings: bool
) -> None:
    decoder = Decoder(config.model_copy(update={"tie_embeddings": tie_embeddings}))
    decoder.requires_grad_(False)
    logits = decoder.logits(decoder(input_ids, row_positions(input_ids), images))
    expected = as_llama(decoder)(input_ids).logits
    # The same operations through other kernels: float32 rounding of logits around 1.
    torch.testing.assert_close(logits, expected, rtol=0.0, atol=2e-5)


def test_closed_gates_let_no_image_through(
    decoder: Decoder, input_ids: Tensor, images: ImageContext
) -> None:
    positions = row_positions(input_ids)
    without = decoder(input_ids, positions, None)
    assert torch.equal(decoder(input_ids, positions, images), without)
    open_gates(decoder)
    assert not torch.equal(decoder(input_ids, positions, images), without)


def test_either_gate_alone_lets_images_in(
    decoder: Decoder, input_ids: Tensor, images: ImageContext
) -> None:
    positions = row_positions(input_ids)
    without = decoder(input_ids, positions, None)
    for gate in ("attn_gate", "mlp_gate"):
        torch.nn.init.ones_(decoder.layers[3].get_parameter(gate))
        assert not torch.equal(decoder(input_ids, positions, images), without)
        torch.nn.init.zeros_(decoder.layers[3].get_parameter(gate))


def test_a_token_that_sees_no_image_passes_a_block_unchanged(
    config: DecoderConfig, images: ImageContext
) -> None:
    block = CrossAttentionBlock(config)
    torch.nn.init.ones_(block.attn_gate)
    torch.nn.init.ones_(block.mlp_gate)
    hidden = torch.randn(BATCH, LENGTH, config.hidden_size)
    assert isinstance(images.tokens, Tensor)
    output = block(hidden, images.tokens, images.mask)
    assert torch.equal(output[1], hidden[1]) and torch.equal(output[0, :2], hidden[0, :2])
    assert (output[0, 2:] != hidden[0, 2:]).any(dim=-1).all()


def test_projected_images_stand_for_their_tokens(
    decoder: Decoder, input_ids: Tensor, images: ImageContext
) -> None:
    open_gates(decoder)
    assert isinstance(images.tokens, Tensor)
    projected = ImageContext(decoder.project_images(images.tokens), images.mask)
    positions = row_positions(input_ids)
    assert torch.equal(
        decoder(input_ids, positions, projected), decoder(input_ids, positions, images)
    )


def test_every_fifth_layer_cross_attends(config: DecoderConfig) -> None:
    deep = config.model_copy(update={"num_layers": 40})
    assert deep.cross_attention_layers == (3, 8, 13, 18, 23, 28, 33, 38)
    with torch.device("meta"):
        layers = Decoder(deep).layers
    found = [i for i, layer in enumerate(layers) if isinstance(layer, CrossAttentionBlock)]
    assert tuple(found) == deep.cross_attention_layers


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_extra_embeddings_are_read_and_never_written(
    config: DecoderConfig, tie_embeddings: bool
) -> None:
    changes = {"num_extra_embeddings": 2, "tie_embeddings": tie_embeddings}
    decoder = Decoder(config.model_copy(update=changes))
    input_ids = torch.tensor([[1, config.vocab_size], [1, config.vocab_size + 1]])
    hidden = decoder(input_ids, row_positions(input_ids), None)
    assert not torch.equal(hidden[0, 1], hidden[1, 1])
    assert decoder.logits(hidden).shape == (2, 2, config.vocab_size)
