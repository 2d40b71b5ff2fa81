"""The loss: how far the guesses are from the teachers' tokens, and which teachers count for which image.

L_ti, of image i and teacher t, is the mean over the teacher's token kinds of a token loss (LOSSES, by name), which is
itself a mean over the tokens of a grid: with class and patch tokens L_ti = 0.5 (l_cls + mean over patches l_patch).

A balancing (BALANCE, by name) then sets c_ti and averages. UNIC drops teachers: the one with the highest L_ti always
counts, every other one is dropped with probability p (arXiv 2408.05088, and its authors' code).

Each average is a total divided by a count, so that a batch can be summed in parts, also of several processes. The
images of a batch may form G groups in order; the loss is then the mean of the groups' averages. A teacher without
features of an image never counts for it: see `present_Bn`.

Letters: B images, S patch tokens, P channels; n teachers; G groups of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, smooth_l1_loss

from unic_cache import draws
from unic_cache.errors import ConfigError


@dataclass(frozen=True)
class LossTerms:
    """The loss of a batch and its parts. All but `loss` and `totals` are detached."""

    loss: Tensor  # scalar, carries the gradient: mean_of_groups(totals, counts)
    totals: Tensor  # (G,), carries the gradient
    counts: Tensor  # (G,)
    means: dict[str, dict[str, Tensor]]  # teacher -> token kind -> mean over its images, scalar
    losses: Tensor  # (n, B), L_ti; of no meaning where the teacher is missing
    coefficients: Tensor  # (n, B), c_ti, 0 or 1
    top: Tensor  # (B,), the teacher with the highest L_ti; the first of equals
    present: Tensor | None = None  # (n, B) bool, whether the teacher has features of the image; None: all have


def distillation_loss(
    guesses: Mapping[str, Mapping[str, Tensor]],
    targets: Mapping[str, Mapping[str, Tensor]],
    uniforms_Bn: Tensor,
    drop: float,
    balancing: str = "batch",
    loss: str = "unic",
    present_Bn: Tensor | None = None,
    groups: Sequence[int] | None = None,
) -> LossTerms:
    """The loss of `guesses` {teacher: {kind: (B, P) or (B, S, P)}} against `targets` of the same layout.

    Teacher t is dropped for image i if uniforms_Bn[i, t] < drop and t's loss is not the highest of i. `uniforms_Bn` in
    [0, 1) has its columns in the order of `guesses` and may be on any device. `balancing` is a name in BALANCE, `loss`
    one in LOSSES. Where `present_Bn` (bool, columns as `uniforms_Bn`) is False, a teacher has no target and does not
    count; each image needs one teacher. `groups` has the number of images of each group, in order, 0 for groups of the
    batch without any here; by default all form one. Tokens are compared in float32 even under autocast. ConfigError if
    the layouts differ.
    """
    if set(guesses) != set(targets):
        raise ConfigError(f"guesses are of teachers {list(guesses)}, targets of {list(targets)}")
    present_nB = None if present_Bn is None else present_Bn.T
    means: dict[str, dict[str, Tensor]] = {}
    rows: list[Tensor] = []
    for number, (name, guess) in enumerate(guesses.items()):
        losses = token_losses(guess, targets[name], name, loss)
        rows.append(torch.stack(list(losses.values())).mean(dim=0))
        own_B = None if present_nB is None else present_nB[number]
        means[name] = {kind: _mean(value.detach(), own_B) for kind, value in losses.items()}
    losses_nB = torch.stack(rows)
    sizes = [losses_nB.shape[1]] if groups is None else list(groups)
    totals_G, counts_G, coefficients_nB, top_B = _balanced(losses_nB, uniforms_Bn, drop, present_nB, balancing, sizes)
    value = mean_of_groups(totals_G, counts_G)
    return LossTerms(value, totals_G, counts_G, means, losses_nB.detach(), coefficients_nB, top_B, present_nB)


def _balanced(
    losses_nB: Tensor, uniforms_Bn: Tensor, drop: float, present_nB: Tensor | None, balancing: str, sizes: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(totals_G, counts_G, coefficients_nB, top_B) of groups of `sizes` images, in order."""
    shown = [None] * len(sizes) if present_nB is None else torch.split(present_nB, sizes, dim=1)
    groups = zip(torch.split(losses_nB, sizes, dim=1), torch.split(uniforms_Bn, sizes), shown, strict=True)
    found = [BALANCE[balancing](own_nB, draws_Bn, drop, has_nB) for own_nB, draws_Bn, has_nB in groups]
    totals, counts, coefficients, tops = zip(*found, strict=True)
    return torch.stack(totals), torch.stack(counts), torch.cat(coefficients, dim=1), torch.cat(tops)


def mean_of_groups(totals_G: Tensor, counts_G: Tensor) -> Tensor:
    """The mean of total / count over the groups that have images; 0 without any."""
    return (totals_G / counts_G.clamp(min=1)).sum() / filled(counts_G)


def filled(counts_G: Tensor) -> Tensor:
    """The number of groups that have images, 1 at least."""
    return (counts_G > 0).sum().clamp(min=1)


def joined(parts: Sequence[LossTerms]) -> LossTerms:
    """The terms of a batch, detached, from those of its parts."""
    if len(parts) == 1:
        return parts[0]
    totals_G, counts_G = (sum_of([getattr(part, name).detach() for part in parts]) for name in ("totals", "counts"))
    images_n = [part.losses.new_full((len(part.losses),), part.losses.shape[1]) for part in parts]
    shown_n = [n if part.present is None else part.present.sum(dim=1) for n, part in zip(images_n, parts, strict=True)]
    means = {
        name: {
            kind: sum_of([part.means[name][kind] * shown[number] for part, shown in zip(parts, shown_n, strict=True)])
            / sum_of([shown[number] for shown in shown_n]).clamp(min=1)
            for kind in kinds
        }
        for number, (name, kinds) in enumerate(parts[0].means.items())
    }
    present = [part.present for part in parts if part.present is not None]
    return LossTerms(
        mean_of_groups(totals_G, counts_G),
        totals_G,
        counts_G,
        means,
        torch.cat([part.losses for part in parts], dim=1),
        torch.cat([part.coefficients for part in parts], dim=1),
        torch.cat([part.top for part in parts]),
        torch.cat(present, dim=1) if present else None,
    )


def token_losses(
    guess: Mapping[str, Tensor], target: Mapping[str, Tensor], teacher: str, loss: str = "unic"
) -> dict[str, Tensor]:
    """{kind: (B,)}, the mean over a kind's tokens, in the order of `target`. ConfigError if the layouts differ."""
    if set(guess) != set(target) or not target:
        raise ConfigError(f"{teacher}: guesses have {sorted(guess)} where its targets have {sorted(target)}")
    for kind in target:
        if guess[kind].shape != target[kind].shape:
            shapes = f"{tuple(guess[kind].shape)} where its targets are {tuple(target[kind].shape)}"
            raise ConfigError(f"{teacher}: guesses of {kind} tokens are {shapes}")
    return {k: token_loss(guess[k], target[k], loss).reshape(len(guess[k]), -1).mean(dim=1) for k in target}


def token_loss(guess: Tensor, target: Tensor, loss: str = "unic") -> Tensor:
    """The loss `loss` over the last axis, in float32 (float64 stays), of summary (B, P) or grid tokens (B, S, P)."""
    guess, target = _wide(guess), _wide(target)
    with torch.autocast(guess.device.type, enabled=False):
        return LOSSES[loss](guess, target, guess.ndim > 2)


def _unic(guess: Tensor, target: Tensor, on_grid: bool) -> Tensor:
    """0.5 (1 - cos) + 0.5 mean_d SmoothL1(beta=1), of every token."""
    del on_grid
    apart = smooth_l1_loss(guess, target, reduction="none", beta=1.0).mean(dim=-1)
    return 0.5 * (1 - cosine_similarity(guess, target, dim=-1)) + 0.5 * apart


def _am_radio(guess: Tensor, target: Tensor, on_grid: bool) -> Tensor:
    """1 - cos of summary tokens, 0.9 (1 - cos) + 0.1 mean_d SmoothL1(beta=1) of patch tokens (arXiv 2312.06709).

    A summary's length is never learned. The paper adds both kinds where L_ti is their mean: half of its loss.
    """
    angle = 1 - cosine_similarity(guess, target, dim=-1)
    if not on_grid:
        return angle
    return 0.9 * angle + 0.1 * smooth_l1_loss(guess, target, reduction="none", beta=1.0).mean(dim=-1)


LOSSES: dict[str, Callable[[Tensor, Tensor, bool], Tensor]] = {"unic": _unic, "am-radio": _am_radio}


def drop_teachers(
    losses_nB: Tensor, uniforms_Bn: Tensor, drop: float, present_nB: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(coefficients_nB, top_B): 1 for each image's highest loss (the first of equals) and where uniform >= drop.

    A teacher that is not present is never the highest and always 0.
    """
    if present_nB is not None:
        losses_nB = losses_nB.where(present_nB, -torch.inf)
    top_B = losses_nB.argmax(dim=0)
    kept_nB = (uniforms_Bn >= drop).T
    if present_nB is not None:
        kept_nB = kept_nB & present_nB
    return kept_nB.to(losses_nB).scatter(0, top_B[None], 1.0), top_B


def drop_uniforms(seed: int, step: int, batch: int, teachers: int) -> Tensor:
    """One step's draws: float64 (batch, teachers) in [0, 1), a pure function of the integers.

    Each process and each part of an accumulated batch takes the rows of its own images.
    """
    raw = draws.words(draws.Purpose.DROP_TEACHER, seed, step, 0, batch * teachers)
    return torch.from_numpy(draws.uniforms(raw)).reshape(batch, teachers)


_Balanced = tuple[Tensor, Tensor, Tensor, Tensor]  # total, count, coefficients_nB, top_B


def _over_batch(losses_nB: Tensor, uniforms_Bn: Tensor, drop: float, present_nB: Tensor | None) -> _Balanced:
    """sum_ti c L / sum_ti c over a group: an image with four teachers counts four times."""
    coefficients_nB, top_B = drop_teachers(losses_nB.detach(), uniforms_Bn, drop, present_nB)
    return (coefficients_nB * losses_nB).sum(), coefficients_nB.sum(), coefficients_nB, top_B


def _per_image(losses_nB: Tensor, uniforms_Bn: Tensor, drop: float, present_nB: Tensor | None) -> _Balanced:
    """mean_i (sum_t c L / sum_t c): every image weighs the same."""
    coefficients_nB, top_B = drop_teachers(losses_nB.detach(), uniforms_Bn, drop, present_nB)
    each_B = (coefficients_nB * losses_nB).sum(dim=0) / coefficients_nB.sum(dim=0)
    return each_B.sum(), coefficients_nB.new_full((), len(each_B)), coefficients_nB, top_B


def _without_dropping(losses_nB: Tensor, uniforms_Bn: Tensor, drop: float, present_nB: Tensor | None) -> _Balanced:
    """mean_ti L: every teacher that has an image counts for it."""
    del drop
    return _over_batch(losses_nB, uniforms_Bn, 0.0, present_nB)


BALANCE: dict[str, Callable[[Tensor, Tensor, float, Tensor | None], _Balanced]] = {
    "batch": _over_batch,
    "image": _per_image,
    "none": _without_dropping,
}


def sum_of(values: Sequence[Tensor]) -> Tensor:
    """The sum of tensors of one shape."""
    return torch.stack(list(values)).sum(dim=0)


def _mean(values_B: Tensor, present_B: Tensor | None) -> Tensor:
    """The mean over the images of which there are targets; 0 without any."""
    if present_B is None:
        return values_B.mean()
    return (values_B * present_B).sum() / present_B.sum().clamp(min=1)


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
