"""Muon's updates against what orthogonality promises, and who gets which optimizer."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from training.config import OptimConfig
from training.muon import orthogonalise
from training.optim import build_optimizer


def make_config(**settings: Any) -> OptimConfig:
    return OptimConfig.model_validate(
        {"kind": "muon", "learning_rate": 0.01, "warmup_steps": 1, "weight_decay": 0.0, **settings}
    )


def give_gradients(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def spectrum(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix)


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    matrices[1] *= 1e-3  # scale does not matter
    values = torch.stack([spectrum(matrix) for matrix in orthogonalise(matrices)])
    # Five steps with these coefficients leave values in about 0.7 to 1.2, unless they started
    # below a few hundredths of the norm; random 8 x 8 matrices have one of those now and then.
    assert values.max() < 1.3 and values.median() > 0.65


def test_orthogonalising_keeps_the_singular_vectors() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(6, 4)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    rotated = u.T @ orthogonalise(matrix.unsqueeze(0))[0] @ vh.T  # diagonal if vectors are kept
    torch.testing.assert_close(rotated, torch.diag(rotated.diagonal()), atol=1e-4, rtol=0)


def test_an_update_is_as_large_as_adamws() -> None:
    module = nn.Linear(32, 16, bias=False)
    before = module.weight.detach().clone()
    give_gradients(module, 0)
    build_optimizer([module], make_config()).step()
    change = (module.weight.detach() - before) / 0.01
    # 0.2 by the rule; singular values between 0.7 and 1.2 leave it within a third.
    assert 0.13 < change.pow(2).mean().sqrt() < 0.27


def test_hidden_weights_are_orthogonal_and_everything_else_is_adamws(tiny_model: nn.Module) -> None:
    optimizer = build_optimizer([tiny_model.encoder, tiny_model.decoder], make_config())
    twin = [p.detach().clone() for p in tiny_model.decoder.parameters()]
    orthogonal = {id(p) for g in optimizer.param_groups if g["orthogonal"] for p in g["params"]}
    names = {n for n, p in tiny_model.named_parameters() if id(p) in orthogonal}
    assert "encoder.patch_embedding.weight" in names
    assert "decoder.layers.3.cross_attn.q_proj.weight" in names
    assert not [n for n in names if "embed_tokens" in n or "lm_head" in n or "position" in n]
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    modules = (tiny_model.encoder, tiny_model.decoder)
    assert len(everything) == len({id(p) for module in modules for p in module.parameters()})
    give_gradients(tiny_model, 1)
    plain = nn.ParameterList(nn.Parameter(p) for p in twin)
    for ours, theirs in zip(tiny_model.decoder.parameters(), plain, strict=True):
        theirs.grad = None if ours.grad is None else ours.grad.clone()
    reference = torch.optim.AdamW(plain, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    optimizer.step()
    reference.step()
    for ours, theirs in zip(tiny_model.decoder.parameters(), plain, strict=True):
        same = torch.allclose(ours, theirs, atol=1e-6, rtol=0)
        assert same == (id(ours) not in orthogonal)


def test_weight_decay_shrinks_orthogonal_weights() -> None:
    module = nn.Linear(4, 4, bias=False)
    before = module.weight.detach().clone()
    module.weight.grad = torch.zeros_like(module.weight)
    build_optimizer([module], make_config(weight_decay=0.5)).step()
    torch.testing.assert_close(module.weight.detach(), before * (1 - 0.01 * 0.5))


def test_frozen_weights_stay_bit_equal_and_without_state() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[0].requires_grad_(False)
    before = module[0].weight.clone()
    optimizer = build_optimizer([module], make_config(weight_decay=0.5))
    give_gradients(module[1], 0)
    optimizer.step()
    assert torch.equal(module[0].weight, before) and module[0].weight not in optimizer.state
