"""The ladder against loops in numpy and one module after the other; its sampling of tokens, its size and its names."""

import copy
import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from unic_cache.errors import ConfigError
from unic_cache.student.backbone import build_encoder, encoder_spec
from unic_cache.student.ladder import Ladder, LastRung, Tokens, can_share, resample_tokens
from unic_cache.student.projectors import Student
from unic_cache.token_kinds import Grid, TokenKind

Array = npt.NDArray[np.float64]


def kinds(cls: int | None, patch: int | None = None, grid: Grid | None = None) -> dict[str, TokenKind]:
    """The kinds of a teacher with at most one class token, and patch tokens."""
    found = {} if cls is None else {"cls": TokenKind(cls)}
    return found if patch is None else {**found, "patch": TokenKind(patch, grid)}


TARGETS = {
    "vit.s@112": kinds(5, 6, (3, 2)),
    "timm:lite": kinds(7, 3, (2, 4)),
    "cls": kinds(4, None),
    "keys": kinds(None, 2, (2, 4)),
}
GRID = (3, 2)
GRIDS = [GRID] * 3  # of every level
ALIKE = {name: kinds(6, 6, GRID) for name in "abcd"}  # as four teachers of one size are
SEVERAL = {  # C-RADIO gives several summary tokens
    "radio": {"clip": TokenKind(5), "dino": TokenKind(6), "patch": TokenKind(6, (2, 4))},
    "vit": kinds(6, 5, GRID),
}
MIXED = {
    "a": kinds(6, 5, GRID),
    "wide": kinds(6, 8, GRID),
    "b": kinds(3, 5, GRID),
    **TARGETS,
    "c": kinds(6, None),
    "d": kinds(None, 5, GRID),
}


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


@pytest.mark.parametrize("targets", [TARGETS, SEVERAL])
def test_ladder_equals_naive_loops(targets: dict[str, dict[str, TokenKind]]) -> None:
    ladder = Ladder([(8, 8)] * 3, targets, seed=1).double()
    with torch.no_grad():
        for value in ladder.parameters():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    outputs = blocks(3, 8, GRID)
    guesses = ladder(outputs, GRIDS)
    layers = {name: list(head.children()) for name, head in ladder.heads.items()}
    for name, target in targets.items():
        assert list(guesses[name]) == list(target)
        for kind, spec in target.items():
            projectors = layers[f"{name.replace('.', '%2E')}:{kind}"]
            for image in range(2):
                total = 0.0
                for block, projector in enumerate(projectors):
                    first, _, second = projector.children()
                    token = outputs[block][spec.grid is not None][image].numpy()
                    if spec.grid is not None:
                        token = naive_sample(token, GRID, spec.grid)
                    hidden = gelu(token @ first.weight.detach().numpy().T + first.bias.detach().numpy())
                    total = total + hidden @ second.weight.detach().numpy().T + second.bias.detach().numpy()
                np.testing.assert_allclose(guesses[name][kind][image].detach().numpy(), total, atol=1e-9)


def one_by_one(ladder: Ladder, outputs: list[tuple[torch.Tensor, torch.Tensor]], grid: Grid) -> dict[str, Tokens]:
    """Every module called on its own, and the outputs of all blocks summed."""
    guesses: dict[str, Tokens] = {}
    for name, target in ladder.targets.items():
        guesses[name] = {}
        for kind, spec in target.items():
            tokens = [cls if spec.grid is None else resample_tokens(patch, grid, spec.grid) for cls, patch in outputs]
            modules = ladder.heads[f"{name.replace('.', '%2E')}:{kind}"].children()
            first, *others = (module(token) for module, token in zip(modules, tokens, strict=True))
            guesses[name][kind] = sum(others, start=first)
    return guesses


def flat(guesses: dict[str, Tokens]) -> list[torch.Tensor]:
    return [guess for tokens in guesses.values() for guess in tokens.values()]


def loss_of(guesses: dict[str, Tokens]) -> torch.Tensor:
    """A loss that weighs every entry of every guess differently."""
    parts = []
    for guess in flat(guesses):
        weights = torch.arange(guess.numel(), dtype=guess.dtype).sin().view(guess.shape)
        parts.append((guess * weights).sum() + guess.square().mean())
    return torch.stack(parts).sum()


def random_ladder(targets: dict[str, dict[str, TokenKind]], width: int = 8) -> Ladder:
    """Three blocks in float64, with weights far from zero and biases too."""
    ladder = Ladder([(width, width)] * 3, targets, seed=1).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in ladder.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return ladder


@pytest.mark.parametrize("targets", [ALIKE, MIXED, SEVERAL, {"one": kinds(5, 6, (2, 4))}])
def test_fused_ladder_has_the_values_and_gradients_of_one_module_after_the_other(
    targets: dict[str, dict[str, TokenKind]],
) -> None:
    ladder = random_ladder(targets)
    leaves = [torch.cat([cls[:, None], patch], dim=1).requires_grad_() for cls, patch in blocks(3, 8, GRID)]
    outputs = [(leaf[:, 0], leaf[:, 1:]) for leaf in leaves]
    fused, plain = ladder(outputs, GRIDS), one_by_one(ladder, outputs, GRID)
    assert [(name, list(tokens)) for name, tokens in fused.items()] == [(n, list(t)) for n, t in plain.items()]
    for ours, theirs in zip(flat(fused), flat(plain), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    names, values = zip(*ladder.named_parameters(), strict=True)
    ours = torch.autograd.grad(loss_of(fused), [*values, *leaves])
    theirs = torch.autograd.grad(loss_of(plain), [*values, *leaves])
    for name, one, other in zip([*names, *"xyz"], ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    with torch.no_grad():
        for ours, theirs in zip(flat(ladder(outputs, GRIDS)), flat(plain), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


@pytest.mark.parametrize("targets", [ALIKE, MIXED])
def test_fused_ladder_under_bf16_autocast_is_as_close_as_one_module_after_the_other(
    targets: dict[str, dict[str, TokenKind]],
) -> None:
    exact = random_ladder(targets, width=32)
    ladder = copy.deepcopy(exact).float()
    wide = blocks(3, 32, GRID, batch=8)
    outputs = [(cls.float(), patch.float()) for cls, patch in wide]

    def outcome(run: Any) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            guesses = flat(run(outputs))
        assert {guess.dtype for guess in guesses} == {torch.bfloat16}
        sums = torch.stack([guess.float().square().sum() for guess in guesses])
        grads = torch.autograd.grad(sums.sum(), list(ladder.parameters()))
        assert {grad.dtype for grad in grads} == {torch.float32}
        return torch.cat([guess.float().flatten() for guess in guesses]), torch.cat([g.flatten() for g in grads])

    truth = flat(exact(wide, GRIDS))
    wanted = torch.autograd.grad(torch.stack([guess.square().sum() for guess in truth]).sum(), list(exact.parameters()))
    sides = [torch.cat([value.flatten() for value in values]).float() for values in (truth, wanted)]
    fused = outcome(lambda given: ladder(given, GRIDS))
    plain = outcome(lambda given: one_by_one(ladder, given, GRID))
    for ours, theirs, right in zip(fused, plain, sides, strict=True):
        error, usual = (((side - right).norm() / right.norm()).item() for side in (ours, theirs))
        assert error < 1.5 * usual  # both round to bfloat16 as often; which way differs from CPU to CPU
        assert error < 0.02  # a few of bfloat16's 2**-8


def test_training_steps_change_the_plain_parameters_alike() -> None:
    fused = random_ladder(MIXED)
    plain = copy.deepcopy(fused)
    outputs = blocks(3, 8, GRID)
    sides = ((fused, lambda: fused(outputs, GRIDS)), (plain, lambda: one_by_one(plain, outputs, GRID)))
    for ladder, run in sides:
        adamw = torch.optim.AdamW(ladder.parameters(), lr=1e-3, eps=1e-3, fused=True)
        for _ in range(3):
            loss_of(run()).backward()
            nn.utils.clip_grad_norm_(ladder.parameters(), 1.0)
            adamw.step()
            adamw.zero_grad(set_to_none=True)
    for (name, ours), theirs in zip(fused.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    again = Ladder([(8, 8)] * 3, MIXED, seed=9).double()
    again.load_state_dict(plain.state_dict())
    for ours, theirs in zip(flat(again(outputs, GRIDS)), flat(plain(outputs, GRIDS)), strict=True):
        assert torch.equal(ours, theirs)


def test_no_two_gradients_share_memory() -> None:
    ladder = random_ladder(ALIKE)
    loss_of(ladder(blocks(3, 8, GRID), GRIDS)).backward()
    spans = sorted(
        (value.grad.data_ptr(), value.grad.data_ptr() + value.grad.nbytes)
        for value in ladder.parameters()
        if value.grad is not None
    )
    assert len(spans) == len(list(ladder.parameters()))
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


class Products(TorchDispatchMode):
    """Counts the matrix products that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.rstrip("_") in {"mm", "addmm", "bmm", "baddbmm"}:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def test_equal_teachers_cost_two_products_a_block_and_token_type() -> None:
    ladder, outputs = random_ladder(ALIKE), blocks(3, 8, GRID)
    leaves = [leaf.requires_grad_() for output in outputs for leaf in output]
    kinds, depth = 2, 3
    with Products() as forward:
        loss = loss_of(ladder(outputs, GRIDS))
    assert forward.counts == {"mm": kinds, "addmm": kinds * depth, "baddbmm_": kinds * depth}
    with Products() as backward:
        torch.autograd.grad(loss, [*ladder.parameters(), *leaves])
    assert backward.counts == {"mm": kinds * (2 * depth + 1), "bmm": kinds * 2 * depth}
    with Products() as plain:
        one_by_one(ladder, outputs, GRID)
    assert plain.counts.total() == 2 * kinds * depth * len(ALIKE)


def test_each_width_of_teachers_on_one_grid_costs_one_second_product_a_block() -> None:
    ladder, outputs = random_ladder(MIXED), blocks(3, 8, GRID)
    with Products() as forward:
        ladder(outputs, GRIDS)
    cls, patch, elsewhere = len({3, 4, 5, 6, 7}), len({5, 6, 8}), len({2, 3})
    assert forward.counts["baddbmm_"] == 3 * (cls + patch + elsewhere)
    assert forward.counts["addmm"] == 3 * 3


def test_backward_needs_no_more_than_the_hidden_values_before_gelu() -> None:
    ladder, outputs = random_ladder(ALIKE), blocks(3, 8, GRID)
    given = {value.untyped_storage().data_ptr() for value in ladder.parameters()}
    given |= {value.untyped_storage().data_ptr() for output in outputs for value in output}
    storages: dict[int, torch.UntypedStorage] = {}

    def note(value: torch.Tensor) -> torch.Tensor:
        storages[value.untyped_storage().data_ptr()] = value.untyped_storage()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        ladder(outputs, GRIDS)
    kept = sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in given)
    rows, hidden, ones = 2 * (1 + 6), 8 * (1 + 1 + 4), 3
    assert kept == 8 * rows * (len(ALIKE) * hidden + ones)


def test_kept_positions_are_those_of_all_guesses() -> None:
    ladder, outputs = random_ladder(MIXED), blocks(3, 8, GRID)
    leaves = [leaf.requires_grad_() for output in outputs for leaf in output]
    kept = {(3, 2): torch.tensor([[5, 0, 3], [1, 2, 4]]), (2, 4): torch.tensor([[7], [0]]), (9, 9): torch.tensor([[0]])}
    some, every = ladder(outputs, GRIDS, kept), ladder(outputs, GRIDS)
    for name, target in MIXED.items():
        for kind, spec in target.items():
            if spec.grid is not None:
                every[name][kind] = every[name][kind][torch.arange(2)[:, None], kept[spec.grid]]
    for ours, theirs in zip(flat(some), flat(every), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    values = [*ladder.parameters(), *leaves]
    grads = (torch.autograd.grad(loss_of(guesses), values) for guesses in (some, every))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_a_grid_without_kept_positions_keeps_all() -> None:
    ladder, outputs = random_ladder(TARGETS), blocks(3, 8, GRID)
    some, every = ladder(outputs, GRIDS, {(3, 2): torch.tensor([[0], [1]])}), ladder(outputs, GRIDS)
    assert some["vit.s@112"]["patch"].shape == (2, 1, 6)
    assert torch.equal(some["timm:lite"]["patch"], every["timm:lite"]["patch"])
    assert torch.equal(some["cls"]["cls"], every["cls"]["cls"])


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
    Ladder([(8, 8)] * 3, TARGETS, seed=1).double()(blocks(3, 8, GRID), GRIDS)
    assert asked == [(3, 2)] * 3 + [(2, 4)] * 3


def test_encoder_and_ladder_have_the_papers_sizes() -> None:
    teachers = {name: kinds(768, 768, (14, 14)) for name in ("dino", "deit3", "ibot", "dbot-ft")}
    with torch.device("meta"):
        encoder = build_encoder(encoder_spec("vit_base_patch16_224"), seed=0)
        ladder = Ladder([(768, 768)] * 12, teachers, seed=0)
    assert sum(value.numel() for value in encoder.parameters()) == pytest.approx(85.8e6, abs=0.05e6)
    assert sum(value.numel() for value in ladder.parameters()) == pytest.approx(141.7e6, abs=0.05e6)
    hidden = [projector.get_parameter("0.weight").shape[0] for projector in ladder.heads["dino:cls"].children()]
    assert hidden == [768] * 11 + [3072]


def test_weights_depend_on_the_seed_alone_and_are_truncated_normal_with_zero_bias() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = Ladder([(64, 64)] * 2, TARGETS, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    same, other = Ladder([(64, 64)] * 2, TARGETS, seed=3), Ladder([(64, 64)] * 2, TARGETS, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    for name, value in one.named_parameters():
        if name.endswith("bias"):
            assert not value.any()
        else:
            assert not torch.equal(value, other.get_parameter(name))
    weights = torch.cat([value.flatten() for value in one.parameters() if value.ndim == 2])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)


def test_checkpoints_have_one_plain_weight_and_bias_a_layer_drawn_one_after_the_other() -> None:
    state = Ladder([(16, 16)] * 3, TARGETS, seed=3).state_dict()
    with torch.random.fork_rng():
        torch.manual_seed(3)
        expected: dict[str, torch.Tensor] = {}
        for teacher, target in TARGETS.items():
            for kind, spec in target.items():
                for block, hidden in enumerate((16, 16, 64)):
                    layers = {"0": nn.Linear(16, hidden), "2": nn.Linear(hidden, spec.channels)}
                    for at, layer in layers.items():
                        nn.init.trunc_normal_(layer.weight, std=0.02)
                        place = f"heads.{teacher.replace('.', '%2E')}:{kind}.{block}.{at}"
                        expected |= {f"{place}.weight": layer.weight, f"{place}.bias": torch.zeros(len(layer.weight))}
    assert list(state) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in state.items())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        known = nn.init.trunc_normal_(torch.empty(2)).tolist() == pytest.approx([1.540996, -0.293429], rel=1e-5)
    if known:  # torch up to 2.11 draws others from a seed
        values = torch.cat([value.flatten().double() for value in state.values()])
        places = torch.arange(1, values.numel() + 1, dtype=torch.float64)
        assert (values * places.sin()).sum().item() == pytest.approx(2.2777236154743608, rel=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(st.sampled_from("ab.%2E@:_-"), min_size=1, max_size=6), min_size=1, max_size=4, unique=True))
def test_any_teacher_names_make_distinct_modules(names: list[str]) -> None:
    ladder = Ladder([(2, 2)], {name: kinds(3, 2, (1, 1)) for name in names}, seed=0)
    assert len(ladder.heads) == 2 * len(names)
    Ladder([(2, 2)], {name: dict.fromkeys(names, TokenKind(3)) for name in names}, seed=0)  # any names of kinds too
    assert list(ladder([(torch.zeros(1, 2), torch.zeros(1, 1, 2))], [(1, 1)])) == names
    Ladder([(2, 2)], ladder.targets, seed=1).load_state_dict(ladder.state_dict())


def test_student_joins_encoder_and_ladder() -> None:
    encoder = build_encoder(encoder_spec("vit_tiny_patch16_224", 32, 8), seed=0)
    student = Student(
        encoder, Ladder([(192, 192)] * 12, {"a": kinds(5, 6, (4, 4)), "b": kinds(None, 3, (2, 2))}, seed=0)
    )
    guesses = student(torch.randn(2, 3, 32, 32))
    shapes = {name: {kind: tuple(value.shape) for kind, value in kinds.items()} for name, kinds in guesses.items()}
    assert shapes == {"a": {"cls": (2, 5), "patch": (2, 16, 6)}, "b": {"patch": (2, 4, 3)}}
    some = student(torch.randn(2, 3, 32, 32), {(4, 4): torch.tensor([[0, 1], [2, 3]])})
    assert (some["a"]["patch"].shape, some["b"]["patch"].shape) == ((2, 2, 6), (2, 4, 3))


def test_teachers_that_teach_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="teacher mute gives no tokens and has nothing to teach"):
        Ladder([(8, 8)] * 2, {"a": kinds(3), "mute": kinds(None)}, seed=0)
    with pytest.raises(ConfigError, match="at least one teacher"):
        Ladder([(8, 8)] * 2, {}, seed=0)


def test_hidden_widths_can_be_the_authors_for_any_student() -> None:
    ladder = Ladder([(6, 6)] * 3, {"a": kinds(5, None)}, 0, hidden=(7, 11))
    shapes = [tuple(value.shape) for name, value in ladder.named_parameters() if name.endswith("0.weight")]
    assert shapes == [(7, 6), (7, 6), (11, 6)]
    own, said = Ladder([(6, 6)] * 3, {"a": kinds(5, None)}, 0), Ladder([(6, 6)] * 3, {"a": kinds(5, None)}, 0, (6, 24))
    assert all(torch.equal(one, other) for one, other in zip(own.parameters(), said.parameters(), strict=True))


def test_the_last_rung_is_a_ladder_whose_other_rungs_say_nothing() -> None:
    ladder, last = random_ladder(MIXED), LastRung([(8, 8)] * 3, MIXED, seed=1).double()
    with torch.no_grad():
        for name, head in ladder.heads.items():
            *others, rung = head.children()
            last.heads[name][0].load_state_dict(rung.state_dict())
            for other in others:
                other.get_parameter("2.weight").zero_()
                other.get_parameter("2.bias").zero_()
    outputs = blocks(3, 8, GRID)
    for ours, theirs in zip(flat(last(outputs, GRIDS)), flat(ladder(outputs, GRIDS)), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    hidden = [len(value) for name, value in last.named_parameters() if name.endswith("0.weight")]
    assert set(hidden) == {4 * 8}


def test_a_shared_ladder_is_one_whose_two_heads_have_the_same_weights_and_gets_both_gradients() -> None:
    targets = {"a": kinds(6, 6, GRID), "wide": kinds(6, 8, GRID), "b": kinds(5, 5, (2, 4)), "c": kinds(7, None)}
    shared = Ladder([(8, 8)] * 3, targets, seed=1, shared=True).double()
    assert list(shared.heads) == ["a:*", "wide:cls", "wide:patch", "b:*", "c:cls"]
    apart = Ladder([(8, 8)] * 3, targets, seed=2).double()
    for name, head in apart.heads.items():
        teacher = name.partition(":")[0]
        head.load_state_dict(shared.heads[f"{teacher}:*" if teacher in "ab" else name].state_dict())
    outputs = blocks(3, 8, GRID)
    ours, theirs = shared(outputs, GRIDS), apart(outputs, GRIDS)
    for one, other in zip(flat(ours), flat(theirs), strict=True):
        assert torch.equal(one, other)
    loss_of(ours).backward()
    loss_of(theirs).backward()
    for teacher in "ab":
        for name, value in shared.heads[f"{teacher}:*"].named_parameters():
            both = [apart.heads[f"{teacher}:{kind}"].get_parameter(name).grad for kind in ("cls", "patch")]
            torch.testing.assert_close(value.grad, both[0] + both[1], atol=1e-10, rtol=0)


def test_one_summary_and_one_grid_kind_of_equal_width_can_share() -> None:
    assert can_share(kinds(6, 6, GRID))
    assert not any(map(can_share, (kinds(6, 5, GRID), kinds(6, None), kinds(None, 6, GRID), SEVERAL["radio"])))
    assert not can_share({"clip": TokenKind(6), "dino": TokenKind(6)})  # it would guess the same for both
    with pytest.raises(
        ConfigError, match=r"none of wide, c can share its projectors: .* leave out --shared-projectors"
    ):
        Ladder([(8, 8)] * 3, {"wide": kinds(6, 8, GRID), "c": kinds(7, None)}, seed=1, shared=True)
