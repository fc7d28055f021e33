"""The projector is what its config says, token by token."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from projector.config import ProjectorConfig
from projector.mlp import Projector


def linears(projector: Projector) -> list[tuple[int, int]]:
    layers = [layer for layer in projector.modules() if isinstance(layer, nn.Linear)]
    return [(layer.in_features, layer.out_features) for layer in layers]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ProjectorConfig(), [(12, 8), (8, 8)]),
        (ProjectorConfig(hidden_size=20), [(12, 20), (20, 8)]),
        (ProjectorConfig(kind="linear"), [(12, 8)]),
    ],
)
def test_the_config_decides_the_layers(
    config: ProjectorConfig, expected: list[tuple[int, int]]
) -> None:
    assert linears(Projector(config, 12, 8)) == expected


def test_mlp_is_linear_gelu_linear() -> None:
    projector = Projector(ProjectorConfig(hidden_size=20), 12, 8)
    features = torch.randn(3, 5, 12)
    first, second = projector.layers[0], projector.layers[2]
    expected = F.linear(F.gelu(F.linear(features, first.weight, first.bias)), second.weight)
    torch.testing.assert_close(projector(features), expected + second.bias)


def test_linear_is_one_matrix_and_a_bias() -> None:
    projector = Projector(ProjectorConfig(kind="linear"), 12, 8)
    features = torch.randn(3, 5, 12)
    weight, bias = projector.layers[0].weight, projector.layers[0].bias
    torch.nn.init.ones_(bias)
    torch.testing.assert_close(projector(features), features @ weight.T + 1)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_every_token_is_projected_alone(kind: str) -> None:
    projector = Projector(ProjectorConfig.model_validate({"kind": kind}), 12, 8)
    features = torch.randn(3, 5, 12)
    changed = features.clone()
    changed[1, 2] += 1
    different = (projector(features) != projector(changed)).any(dim=-1)
    assert different.nonzero().tolist() == [[1, 2]]


def test_a_new_linear_projector_preserves_variance() -> None:
    torch.manual_seed(0)
    projected = Projector(ProjectorConfig(kind="linear"), 512, 256)(torch.randn(64, 512))
    # 16,384 outputs of one random matrix: the sample's deviation scatters by about 1 %.
    assert projected.std().item() == pytest.approx(1, rel=0.05)
