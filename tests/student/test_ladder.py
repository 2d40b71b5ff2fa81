"""The ladder against loops in numpy, its sampling of tokens, its size and its names."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unic_cache.errors import ConfigError
from unic_cache.student.backbone import build_encoder, encoder_spec
from unic_cache.student.ladder import Ladder, Student, TargetSpec, resample_tokens

Array = npt.NDArray[np.float64]
TARGETS = {
    "vit.s@112": TargetSpec(5, 6, (3, 2)),
    "timm:lite": TargetSpec(7, 3, (2, 4)),
    "cls": TargetSpec(4, None),
    "keys": TargetSpec(None, 2, (2, 4)),
}
GRID = (3, 2)


def gelu(x: Array) -> Array:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def naive_sample(patch_TD: Array, grid: tuple[int, int], target: tuple[int, int]) -> Array:
    image = patch_TD.reshape(*grid, -1)
    rows = []
    for row in range(target[0]):
        for column in range(target[1]):
            y = min(max((row + 0.5) * grid[0] / target[0] - 0.5, 0), grid[0] - 1)
            x = min(max((column + 0.5) * grid[1] / target[1] - 0.5, 0), grid[1] - 1)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, grid[0] - 1), min(left + 1, grid[1] - 1)
            down, along = y - top, x - left
            upper = image[top, left] * (1 - along) + image[top, right] * along
            lower = image[bottom, left] * (1 - along) + image[bottom, right] * along
            rows.append(upper * (1 - down) + lower * down)
    return np.stack(rows)


def blocks(depth: int, width: int, grid: tuple[int, int], batch: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tokens = grid[0] * grid[1]
    return [
        (
            torch.randn(batch, width, generator=generator, dtype=torch.float64),
            torch.randn(batch, tokens, width, generator=generator, dtype=torch.float64),
        )
        for _ in range(depth)
    ]


def test_ladder_equals_naive_loops() -> None:
    ladder = Ladder(8, 3, TARGETS, seed=1).double()
    with torch.no_grad():
        for value in ladder.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    outputs = blocks(3, 8, GRID)
    guesses = ladder(outputs, GRID)
    layers = {name: list(head.children()) for name, head in ladder.heads.items()}
    for name, target in TARGETS.items():
        for kind, dim in (("cls", target.cls_dim), ("patch", target.patch_dim)):
            if dim is None:
                assert kind not in guesses[name]
                continue
            projectors = layers[f"{name.replace('.', '%2E')}:{kind}"]
            for image in range(2):
                total = 0.0
                for block, projector in enumerate(projectors):
                    first, _, second = projector.children()
                    token = outputs[block][kind == "patch"][image].numpy()
                    if kind == "patch":
                        assert target.grid is not None
                        token = naive_sample(token, GRID, target.grid)
                    hidden = gelu(token @ first.weight.detach().numpy().T + first.bias.detach().numpy())
                    total = total + hidden @ second.weight.detach().numpy().T + second.bias.detach().numpy()
                np.testing.assert_allclose(guesses[name][kind][image].detach().numpy(), total, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(*(st.integers(1, 9) for _ in range(4)))
def test_sampling_is_bilinear_at_the_targets_token_centres(h: int, w: int, y: int, x: int) -> None:
    patch = torch.randn(2, h * w, 3, generator=torch.Generator().manual_seed(h * 9 + w), dtype=torch.float64)
    sampled = resample_tokens(patch, (h, w), (y, x))
    for image in range(2):
        np.testing.assert_allclose(
            sampled[image].numpy(), naive_sample(patch[image].numpy(), (h, w), (y, x)), atol=1e-9
        )


def test_sampling_agrees_with_torch_interpolate_and_stays_float32_under_autocast() -> None:
    patch = torch.randn(2, 14 * 14, 8)
    expected = torch.nn.functional.interpolate(
        patch.reshape(2, 14, 14, 8).permute(0, 3, 1, 2), size=(8, 8), mode="bilinear", align_corners=False
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sampled = resample_tokens(patch, (14, 14), (8, 8))
    assert sampled.dtype == torch.float32
    torch.testing.assert_close(sampled, expected.permute(0, 2, 3, 1).reshape(2, 64, 8))


def test_equal_grids_are_not_sampled() -> None:
    patch = torch.randn(1, 6, 2)
    assert resample_tokens(patch, (3, 2), (3, 2)) is patch


def test_each_distinct_grid_is_sampled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def counted(patch: torch.Tensor, grid: tuple[int, int], target: tuple[int, int]) -> torch.Tensor:
        asked.append(target)
        return resample_tokens(patch, grid, target)

    monkeypatch.setattr("unic_cache.student.ladder.resample_tokens", counted)
    Ladder(8, 3, TARGETS, seed=1).double()(blocks(3, 8, GRID), GRID)
    assert asked == [(3, 2)] * 3 + [(2, 4)] * 3


def test_encoder_and_ladder_have_the_papers_sizes() -> None:
    teachers = {name: TargetSpec(768, 768, (14, 14)) for name in ("dino", "deit3", "ibot", "dbot-ft")}
    with torch.device("meta"):
        encoder = build_encoder(encoder_spec("vit_base_patch16_224"), seed=0)
        ladder = Ladder(768, 12, teachers, seed=0)
    assert sum(value.numel() for value in encoder.parameters()) == pytest.approx(85.8e6, abs=0.05e6)
    assert sum(value.numel() for value in ladder.parameters()) == pytest.approx(141.7e6, abs=0.05e6)
    hidden = [projector.get_parameter("0.weight").shape[0] for projector in ladder.heads["dino:cls"].children()]
    assert hidden == [768] * 11 + [3072]


def test_weights_depend_on_the_seed_alone_and_are_truncated_normal_with_zero_bias() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = Ladder(64, 2, TARGETS, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    same, other = Ladder(64, 2, TARGETS, seed=3), Ladder(64, 2, TARGETS, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    for name, value in one.named_parameters():
        if name.endswith("bias"):
            assert not value.any()
        else:
            assert not torch.equal(value, other.get_parameter(name))
    weights = torch.cat([value.flatten() for value in one.parameters() if value.ndim == 2])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(st.sampled_from("ab.%2E@:_-"), min_size=1, max_size=6), min_size=1, max_size=4, unique=True))
def test_any_teacher_names_make_distinct_modules(names: list[str]) -> None:
    ladder = Ladder(2, 1, {name: TargetSpec(3, 2, (1, 1)) for name in names}, seed=0)
    assert len(ladder.heads) == 2 * len(names)
    assert list(ladder([(torch.zeros(1, 2), torch.zeros(1, 1, 2))], (1, 1))) == names
    Ladder(2, 1, ladder.targets, seed=1).load_state_dict(ladder.state_dict())


def test_student_joins_encoder_and_ladder() -> None:
    encoder = build_encoder(encoder_spec("vit_tiny_patch16_224", 32, 8), seed=0)
    student = Student(
        encoder, Ladder(192, 12, {"a": TargetSpec(5, 6, (4, 4)), "b": TargetSpec(None, 3, (2, 2))}, seed=0)
    )
    guesses = student(torch.randn(2, 3, 32, 32))
    shapes = {name: {kind: tuple(value.shape) for kind, value in kinds.items()} for name, kinds in guesses.items()}
    assert shapes == {"a": {"cls": (2, 5), "patch": (2, 16, 6)}, "b": {"patch": (2, 4, 3)}}


def test_teachers_that_teach_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="neither class nor patch tokens has nothing to teach"):
        TargetSpec(None, None)
    with pytest.raises(ConfigError, match="must say its grid"):
        TargetSpec(3, 4)
    with pytest.raises(ConfigError, match="at least one teacher"):
        Ladder(8, 2, {}, seed=0)
