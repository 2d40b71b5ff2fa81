"""Position embeddings at another grid, each rule against an independent reading of it."""

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from unic_cache.teachers.positions import resample

RULES = ("timm", "bicubic", "bicubic-scale")


def position(side: int, prefix: int) -> torch.Tensor:
    return torch.randn(1, prefix + side * side, 8, generator=torch.Generator().manual_seed(side))


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75."""
    a, x = -0.75, abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


def naive_bicubic(plane: torch.Tensor, size: int, step: float) -> torch.Tensor:
    """One output at a time; `step` is how far apart the outputs lie in the input."""
    own = plane.shape[0]
    weights = torch.zeros(size, own, dtype=torch.float64)
    for row in range(size):
        centre = (row + 0.5) * step - 0.5
        base = int(centre // 1)
        for tap in range(base - 1, base + 3):
            weights[row, min(max(tap, 0), own - 1)] += cubic(centre - tap)
    return torch.einsum("ra,sb,abd->rsd", weights, weights, plane.double())


@pytest.mark.parametrize("rule", RULES)
def test_equal_grids_are_left_alone(rule):
    own = position(6, 1)
    assert resample(own, (6, 6), 1, rule) is own


@pytest.mark.parametrize("size", [4, 9])
def test_timm_rule_is_what_timm_does(size):
    own = position(6, 2)
    assert torch.equal(resample(own, (size, size), 2, "timm"), resample_abs_pos_embed(own, [size, size], None, 2))


@pytest.mark.parametrize("size", [4, 9])
@pytest.mark.parametrize(("rule", "extra"), [("bicubic", 0.0), ("bicubic-scale", 0.1)])
def test_bicubic_rules_match_a_loop_over_outputs(rule, extra, size):
    own = position(6, 1)
    expected = naive_bicubic(own[0, 1:].reshape(6, 6, 8), size, 6 / (size + extra))
    found = resample(own, (size, size), 1, rule)
    assert torch.equal(found[:, :1], own[:, :1])
    torch.testing.assert_close(found[0, 1:].double(), expected.reshape(-1, 8), atol=1e-5, rtol=0)


def test_positions_that_make_no_square_are_refused():
    with pytest.raises(ValueError, match="11 positions with 1 before the grid make no square grid"):
        resample(torch.zeros(1, 11, 4), (3, 3), 1, "bicubic")
