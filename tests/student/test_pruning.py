"""Pruning against numpy, one weight at a time."""

import numpy as np
import pytest
import torch
from torch import nn

from unic_cache.errors import ConfigError
from unic_cache.student.backbone import build_encoder, encoder_spec
from unic_cache.student.pruning import pruned, weight_matrices


@pytest.fixture
def encoder():
    return build_encoder(encoder_spec("test_vit", 32, 16), 3)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_smallest_weights_of_all_matrices_together_become_zero(encoder, share):
    before = {name: value.numpy().copy() for name, value in encoder.state_dict().items()}
    layers = ("patch_embed.proj", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    names = [name for name in before if name.endswith(tuple(f"{layer}.weight" for layer in layers))]
    flat = np.concatenate([before[name].ravel() for name in names])
    flat[sorted(range(len(flat)), key=lambda place: abs(flat[place]))[: round(share * len(flat))]] = 0
    expected = {**before}
    for name in names:
        expected[name], flat = flat[: before[name].size].reshape(before[name].shape), flat[before[name].size :]
    found = pruned(encoder, share).state_dict()
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name].numpy(), expected[name]) for name in expected)
    assert all(np.array_equal(encoder.state_dict()[name].numpy(), before[name]) for name in before)


def test_of_equal_weights_just_as_many_go_as_were_asked_for():
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    for layer in layers:
        nn.init.constant_(layer.weight, -0.5)
        nn.init.constant_(layer.bias, 0.1)
    found = pruned(layers, 0.25)
    assert [int((layer.weight == 0).sum()) for layer in found] == [8, 0]
    assert all((layer.bias != 0).all() for layer in found)


def test_what_is_counted_is_all_that_multiplies_tokens(encoder):
    """Every parameter of two dimensions or more, but positions and tokens."""
    counted = {f"{name}.weight" for name in weight_matrices(encoder)}
    others = {name for name, value in encoder.named_parameters() if value.ndim >= 2} - counted
    assert others == {"cls_token", "pos_embed"}


@pytest.mark.parametrize("share", [-0.1, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(encoder, share):
    with pytest.raises(ConfigError, match="choose 0 to 1"):
        pruned(encoder, share)


def test_weights_that_are_no_numbers_are_told(encoder):
    with torch.no_grad():
        encoder.blocks[0].mlp.fc1.weight[0, 0] = torch.nan
    with pytest.raises(ConfigError, match="diverged"):
        pruned(encoder, 0.5)
