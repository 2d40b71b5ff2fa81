"""The loss against plain loops over images, teachers, tokens and channels in float64."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.training.runlog import Meter
from unic_cache.draws import Purpose, uniforms, words
from unic_cache.errors import ConfigError
from unic_cache.student.loss import (
    BALANCE,
    LOSSES,
    LossTerms,
    distillation_loss,
    drop_teachers,
    drop_uniforms,
    joined,
    token_loss,
)

Layout = dict[str, dict[str, tuple[int, ...]]]
BOTH: Layout = {
    "dino": {"cls": (7,), "patch": (4, 5)},
    "lite@128": {"cls": (6,), "patch": (9, 3)},
    "cls.only": {"cls": (5,)},
    "patch-only": {"patch": (4, 4)},
}
SEVERAL: Layout = {  # summary tokens of C-RADIO's kind
    "radio": {"clip": (6,), "dino": (3,), "patch": (4, 5)},
    "vit": {"cls": (5,), "patch": (9, 3)},
}


def answers(layout: Layout, batch: int, seed: int, scale: float = 1.0) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: {
            kind: scale * torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
            for kind, shape in kinds.items()
        }
        for name, kinds in layout.items()
    }


WEIGHTS = {  # of angle and distance, in summary tokens and on grids
    "unic": ((0.5, 0.5), (0.5, 0.5)),
    "am-radio": ((1.0, 0.0), (0.9, 0.1)),
}


def naive_token(guess: list[float], target: list[float], weights: tuple[float, float] = (0.5, 0.5)) -> float:
    dot = sum(s * t for s, t in zip(guess, target, strict=True))
    norms = math.sqrt(sum(s * s for s in guess)) * math.sqrt(sum(t * t for t in target))
    apart = 0.0
    for s, t in zip(guess, target, strict=True):
        gap = abs(s - t)
        apart += 0.5 * gap * gap if gap < 1 else gap - 0.5
    return weights[0] * (1 - dot / norms) + weights[1] * apart / len(guess)


def naive_image(
    guess: dict[str, Tensor], target: dict[str, Tensor], image: int, loss: str = "unic"
) -> dict[str, float]:
    parts = {}
    summary, grid = WEIGHTS[loss]
    for kind, values in guess.items():
        s, t = values[image].tolist(), target[kind][image].tolist()
        if values.ndim == 2:
            parts[kind] = naive_token(s, t, summary)
        else:
            parts[kind] = sum(naive_token(a, b, grid) for a, b in zip(s, t, strict=True)) / len(s)
    return parts


def naive_loss(
    guesses: dict[str, dict[str, Tensor]],
    targets: dict[str, dict[str, Tensor]],
    chance: list[list[float]],
    drop: float,
    balancing: str,
    loss: str = "unic",
    present: list[list[bool]] | None = None,
) -> tuple[float, list[list[int]], list[int]]:
    """`present[image][teacher]`; a missing teacher is as if the image had never had it."""
    batch = len(chance)
    names = list(guesses)
    chosen = [[0] * batch for _ in names]
    leaders, ratios, total, count = [], [], 0.0, 0
    for image in range(batch):
        losses = {}
        for t, name in enumerate(names):
            if present is None or present[image][t]:
                parts = naive_image(guesses[name], targets[name], image, loss)
                losses[t] = sum(parts.values()) / len(parts)
        leader = max(losses, key=lambda t: (losses[t], -t))
        leaders.append(leader)
        kept = [t for t in losses if t == leader or chance[image][t] >= drop or balancing == "none"]
        for t in kept:
            chosen[t][image] = 1
        total += sum(losses[t] for t in kept)
        count += len(kept)
        ratios.append(sum(losses[t] for t in kept) / len(kept))
    return sum(ratios) / batch if balancing == "image" else total / count, chosen, leaders


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("balancing", list(BALANCE))
@pytest.mark.parametrize("drop", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("layout", [BOTH, {"alone": BOTH["dino"]}, SEVERAL], ids=["four", "one", "two summaries"])
def test_loss_equals_naive_loops(layout: Layout, drop: float, balancing: str, loss: str) -> None:
    guesses, targets = answers(layout, 6, 1, 2.0), answers(layout, 6, 2)
    chance = drop_uniforms(3, 5, 6, len(layout))
    terms = distillation_loss(guesses, targets, chance, drop, balancing, loss)
    value, chosen, leaders = naive_loss(guesses, targets, chance.tolist(), drop, balancing, loss)
    assert terms.loss.item() == pytest.approx(value, abs=1e-9)
    assert terms.coefficients.tolist() == chosen
    assert terms.top.tolist() == leaders
    for name in layout:
        parts = [naive_image(guesses[name], targets[name], image, loss) for image in range(6)]
        for kind in layout[name]:
            assert terms.means[name][kind].item() == pytest.approx(np.mean([part[kind] for part in parts]), abs=1e-9)


@pytest.mark.parametrize("balancing", list(BALANCE))
def test_a_teacher_that_an_image_lacks_is_as_if_it_had_never_been_there(balancing: str) -> None:
    guesses, targets = answers(BOTH, 6, 1, 2.0), answers(BOTH, 6, 2)
    chance = drop_uniforms(3, 5, 6, 4)
    present = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 1], [0, 1, 0, 0]]).bool()
    for number, name in enumerate(BOTH):
        for kind in targets[name].values():
            kind[~present[:, number]] = 0  # as the stream gives it
        for kind in guesses[name].values():
            kind.requires_grad_()
    terms = distillation_loss(guesses, targets, chance, 0.5, balancing, present_Bn=present)
    plain = {name: {kind: value.detach() for kind, value in kinds.items()} for name, kinds in guesses.items()}
    value, chosen, leaders = naive_loss(plain, targets, chance.tolist(), 0.5, balancing, present=present.tolist())
    assert terms.loss.item() == pytest.approx(value, abs=1e-9)
    assert terms.coefficients.tolist() == chosen
    assert terms.top.tolist() == leaders
    terms.loss.backward()
    for number, name in enumerate(BOTH):
        shown = [image for image in range(6) if present[image, number]]
        for kind, values in guesses[name].items():
            assert values.grad is not None
            assert not values.grad[~present[:, number]].any()
            mean = np.mean([naive_image(plain[name], targets[name], image)[kind] for image in shown])
            assert terms.means[name][kind].item() == pytest.approx(mean, abs=1e-9)


def test_the_parts_of_a_batch_give_the_terms_of_the_whole() -> None:
    guesses, targets = answers(BOTH, 6, 1, 2.0), answers(BOTH, 6, 2)
    chance = drop_uniforms(3, 5, 6, 4)
    present = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 1], [0, 1, 0, 0]]).bool()

    def terms(rows: slice, shown: Tensor | None) -> LossTerms:
        cut = [{n: {k: v[rows] for k, v in kinds.items()} for n, kinds in of.items()} for of in (guesses, targets)]
        return distillation_loss(*cut, chance[rows], 0.5, present_Bn=None if shown is None else shown[rows])

    for shown in (None, present):
        whole, parts = terms(slice(6), shown), joined([terms(slice(i, i + 2), shown) for i in (0, 2, 4)])
        for name in ("loss", "totals", "counts", "losses", "coefficients", "top"):
            torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
        torch.testing.assert_close(parts.means, whole.means)


def test_am_radio_never_learns_the_length_of_a_summary() -> None:
    guess, target = torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([[3.0, 6.0, 6.0]])
    assert token_loss(guess, target, "am-radio").item() == pytest.approx(0, abs=1e-6)
    on_grid = token_loss(guess[:, None], target[:, None], "am-radio").item()
    assert on_grid == pytest.approx(0.1 * (1.5 + 3.5 + 3.5) / 3, abs=1e-6)


def test_batch_and_image_differ_once_teachers_are_dropped() -> None:
    guesses, targets = answers(BOTH, 8, 1, 2.0), answers(BOTH, 8, 2)
    chance = drop_uniforms(0, 0, 8, 4)
    with_drop = {name: distillation_loss(guesses, targets, chance, 0.5, name).loss.item() for name in BALANCE}
    without = {name: distillation_loss(guesses, targets, chance, 0.0, name).loss.item() for name in BALANCE}
    assert abs(with_drop["batch"] - with_drop["image"]) > 1e-3
    assert without["batch"] == pytest.approx(without["image"], abs=1e-12)


def test_balancing_over_the_batch_weighs_an_image_by_its_active_teachers() -> None:
    losses = torch.tensor([[4.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    uniforms = torch.tensor([[0.0, 0.9], [0.0, 0.1]])
    for name, expected in (
        ("batch", (4 + 2 + 1) / 3),
        ("image", ((4 + 2) / 2 + 1) / 2),
        ("none", (4 + 2 + 1 + 0) / 4),
    ):
        total, count, *_ = BALANCE[name](losses, uniforms, 0.5, None)
        assert (total / count).item() == pytest.approx(expected)


def test_of_tied_teachers_the_first_is_the_one_always_kept() -> None:
    losses = torch.ones(3, 2, dtype=torch.float64)
    coefficients, top = drop_teachers(losses, torch.zeros(2, 3, dtype=torch.float64), 0.5)
    assert top.tolist() == [0, 0]
    assert coefficients.tolist() == [[1, 1], [0, 0], [0, 0]]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 6), st.integers(1, 5), st.floats(0, 0.99), st.integers(0, 2**32 - 1))
def test_every_image_keeps_its_hardest_teacher_and_the_others_by_their_draw(
    batch: int, teachers: int, drop: float, seed: int
) -> None:
    losses = torch.rand(teachers, batch, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chance = drop_uniforms(seed, 0, batch, teachers)
    coefficients, top = drop_teachers(losses, chance, drop)
    for image in range(batch):
        column = losses[:, image].tolist()
        assert top[image] == column.index(max(column))
        for teacher in range(teachers):
            kept = teacher == top[image] or chance[image, teacher] >= drop
            assert coefficients[teacher, image] == float(kept)


def test_drop_uniforms_are_the_words_of_seed_and_step() -> None:
    raw = words(Purpose.DROP_TEACHER, 7, 11, 0, 12)
    assert np.array_equal(drop_uniforms(7, 11, 3, 4).numpy(), uniforms(raw).reshape(3, 4))
    others = [drop_uniforms(8, 11, 3, 4), drop_uniforms(7, 12, 3, 4)]
    assert not any(torch.equal(other, drop_uniforms(7, 11, 3, 4)) for other in others)


def test_loss_is_computed_in_float32_under_autocast() -> None:
    guesses, targets = answers(BOTH, 4, 1), answers(BOTH, 4, 2)
    halves = [
        {name: {kind: value.bfloat16() for kind, value in kinds.items()} for name, kinds in side.items()}
        for side in (guesses, targets)
    ]
    wide = [{n: {k: v.double() for k, v in kinds.items()} for n, kinds in side.items()} for side in halves]
    chance = drop_uniforms(0, 0, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = distillation_loss(halves[0], halves[1], chance, 0.5)
    assert terms.loss.dtype == torch.float32
    assert terms.loss.item() == pytest.approx(distillation_loss(wide[0], wide[1], chance, 0.5).loss.item(), abs=1e-6)


def test_gradient_of_the_token_loss_is_the_numerical_one() -> None:
    guess, target = answers({"t": {"patch": (2, 3)}}, 2, 1)["t"]["patch"], answers({"t": {"patch": (2, 3)}}, 2, 2)
    assert torch.autograd.gradcheck(token_loss, (guess.requires_grad_(), target["t"]["patch"]))


def test_only_kept_teachers_receive_a_gradient() -> None:
    guesses, targets = answers(BOTH, 4, 1), answers(BOTH, 4, 2)
    for kinds in guesses.values():
        for value in kinds.values():
            value.requires_grad_()
    terms = distillation_loss(guesses, targets, torch.zeros(4, 4), 0.5)
    terms.loss.backward()
    for number, kinds in enumerate(guesses.values()):
        for value in kinds.values():
            assert value.grad is not None
            reached = value.grad.reshape(4, -1).abs().sum(dim=1) > 0
            assert reached.tolist() == (terms.top == number).tolist()


def test_the_meter_reads_what_the_log_holds() -> None:
    guesses, targets = answers(BOTH, 4, 1), answers(BOTH, 4, 2)
    terms = distillation_loss(guesses, targets, drop_uniforms(0, 0, 4, 4), 0.5)
    meter = Meter(Accelerator(cpu=True), {name: list(kinds) for name, kinds in terms.means.items()})
    meter.add(terms)
    summary = meter.read()["teachers"]
    assert list(summary) == list(BOTH)
    assert set(summary["cls.only"]) == {"cls", "coefficient", "top"}
    assert sum(values["top"] for values in summary.values()) == pytest.approx(1)
    assert summary["dino"]["coefficient"] == pytest.approx(terms.coefficients[0].mean().item())


def test_disagreeing_layouts_are_refused_by_name_and_shape() -> None:
    guesses, targets = answers(BOTH, 2, 1), answers(BOTH, 2, 2)
    chance = torch.zeros(2, 4)
    with pytest.raises(ConfigError, match=r"guesses are of teachers \['dino', .*targets of \['dino'\]"):
        distillation_loss(guesses, {"dino": targets["dino"]}, chance, 0.5)
    with pytest.raises(ConfigError, match=r"cls\.only: guesses have \['cls'\] where its targets have \['cls', 'patch'"):
        distillation_loss(guesses, {**targets, "cls.only": targets["dino"]}, chance, 0.5)
    bad = {**targets, "dino": {"cls": torch.zeros(2, 8), "patch": targets["dino"]["patch"]}}
    with pytest.raises(ConfigError, match=r"dino: guesses of cls tokens are \(2, 7\) where its targets are \(2, 8\)"):
        distillation_loss(guesses, bad, chance, 0.5)
