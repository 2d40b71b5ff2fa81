"""The learning rate's shape and which parameters are decayed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unic_cache.student.backbone import build_encoder, encoder_spec
from unic_cache.student.schedule import learning_rate, optimizer, parameter_groups


def test_rate_warms_up_linearly_then_follows_a_cosine_to_the_minimum() -> None:
    rates = [learning_rate(step, 110, 10, 1.0, 0.1) for step in range(110)]
    assert rates[:10] == pytest.approx([step / 9 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55)  # half of the way down, 50 of 100 steps
    assert rates[109] == pytest.approx(0.1, abs=1e-3)
    assert rates[9:] == sorted(rates[9:], reverse=True)


@pytest.mark.parametrize(("total", "warmup"), [(100, 5), (1000, 50), (12, 0), (12, 1), (12, 2)])
def test_rate_is_that_of_the_authors_runs_step_for_step(total: int, warmup: int) -> None:
    """Their two halves as numpy makes them: a line of `warmup` points from 0 to the peak, then a cosine."""
    peak, minimum = 6e-4, 1e-6
    down = np.arange(total - warmup) / (total - warmup)
    expected = [*np.linspace(0, peak, warmup), *(minimum + (peak - minimum) * (1 + np.cos(np.pi * down)) / 2)]
    assert [learning_rate(step, total, warmup, peak, minimum) for step in range(total)] == pytest.approx(expected)


@given(st.integers(1, 500), st.integers(0, 500), st.integers(0, 499))
@settings(deadline=None)
def test_rate_stays_between_zero_and_the_peak_and_goes_down_after_the_warm_up(
    total: int, warmup: int, step: int
) -> None:
    warmup, step = min(warmup, total - 1), min(step, total - 1)
    assert 0 <= learning_rate(step, total, warmup, 3e-4, 1e-6) <= 3e-4 * (1 + 1e-12)
    assert learning_rate(total - 1, total, warmup, 3e-4, 1e-6) >= 1e-6
    if step > warmup:
        assert learning_rate(step, total, warmup, 3e-4, 1e-6) < learning_rate(step - 1, total, warmup, 3e-4, 1e-6)


def test_one_dimensional_parameters_and_biases_are_not_decayed_but_class_and_position_tokens_are() -> None:
    encoder = build_encoder(encoder_spec("vit_tiny_patch16_224", 32, 8), seed=0)
    decayed, plain = parameter_groups(encoder, 0.03)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.03, 0.0)
    names = {id(value): name for name, value in encoder.named_parameters()}
    decayed_names = {names[id(value)] for value in decayed["params"]}
    plain_names = {names[id(value)] for value in plain["params"]}
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= decayed_names
    assert {"patch_embed.proj.bias", "blocks.0.norm1.weight", "blocks.11.mlp.fc2.bias"} <= plain_names
    trained = {name for name, value in encoder.named_parameters() if value.requires_grad}
    assert decayed_names | plain_names == trained
    assert not decayed_names & plain_names


def test_optimizer_has_the_papers_settings() -> None:
    made = optimizer(torch.nn.Linear(2, 2), 6e-4, 0.03)
    assert isinstance(made, torch.optim.AdamW)
    assert [(group["betas"], group["eps"], group["lr"]) for group in made.param_groups] == [
        ((0.9, 0.99), 1e-8, 6e-4)
    ] * 2
    assert [group["weight_decay"] for group in made.param_groups] == [0.03, 0.0]
