"""UNIC's loss: how far the guesses are from the teachers' tokens, and which teachers count for which image.

For one token l = 0.5 (1 - cos(s, t)) + 0.5 mean_d SmoothL1(s - t, beta=1); for image i and teacher t L_ti is the mean
over the teacher's token kinds of l, which is itself a mean over the tokens of a grid: with class and patch tokens
L_ti = 0.5 (l_cls + mean over patches l_patch). Teacher dropping then sets c_ti: the teacher with the highest L_ti
always counts, every other one is dropped with probability p (UNIC, arXiv 2408.05088, and its authors' code).

Letters: B images, S patch tokens, P channels; n teachers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, smooth_l1_loss

from unic_cache import draws
from unic_cache.errors import ConfigError


@dataclass(frozen=True)
class LossTerms:
    """The loss of a batch and its parts. All but `loss` are detached."""

    loss: Tensor  # scalar, carries the gradient
    means: dict[str, dict[str, Tensor]]  # teacher -> token kind -> mean over images, scalar
    losses: Tensor  # (n, B), L_ti
    coefficients: Tensor  # (n, B), c_ti, 0 or 1
    top: Tensor  # (B,), the teacher with the highest L_ti; the first of equals


def distillation_loss(
    guesses: Mapping[str, Mapping[str, Tensor]],
    targets: Mapping[str, Mapping[str, Tensor]],
    uniforms_Bn: Tensor,
    drop: float,
    normalization: str = "batch",
) -> LossTerms:
    """The loss of `guesses` {teacher: {kind: (B, P) or (B, S, P)}} against `targets` of the same layout.

    Teacher t is dropped for image i if uniforms_Bn[i, t] < drop and t's loss is not the highest of i. `uniforms_Bn` in
    [0, 1) has its columns in the order of `guesses` and may be on any device. `normalization` is "batch" (the authors')
    or "image", see NORMALIZE. Tokens are compared in float32 even under autocast. ConfigError if the layouts differ.
    """
    if set(guesses) != set(targets):
        raise ConfigError(f"guesses are of teachers {list(guesses)}, targets of {list(targets)}")
    means: dict[str, dict[str, Tensor]] = {}
    rows: list[Tensor] = []
    for name, guess in guesses.items():
        losses = token_losses(guess, targets[name], name)
        rows.append(torch.stack(list(losses.values())).mean(dim=0))
        means[name] = {kind: value.detach().mean() for kind, value in losses.items()}
    losses_nB = torch.stack(rows)
    coefficients_nB, top_B = drop_teachers(losses_nB.detach(), uniforms_Bn, drop)
    loss = NORMALIZE[normalization](losses_nB, coefficients_nB)
    return LossTerms(loss, means, losses_nB.detach(), coefficients_nB, top_B)


def token_losses(guess: Mapping[str, Tensor], target: Mapping[str, Tensor], teacher: str) -> dict[str, Tensor]:
    """{kind: (B,)}, the mean over a kind's tokens, in the order of `target`. ConfigError if the layouts differ."""
    if set(guess) != set(target) or not target:
        raise ConfigError(f"{teacher}: guesses have {sorted(guess)} where its targets have {sorted(target)}")
    for kind in target:
        if guess[kind].shape != target[kind].shape:
            shapes = f"{tuple(guess[kind].shape)} where its targets are {tuple(target[kind].shape)}"
            raise ConfigError(f"{teacher}: guesses of {kind} tokens are {shapes}")
    return {k: token_loss(guess[k], target[k]).reshape(len(guess[k]), -1).mean(dim=1) for k in target}


def token_loss(guess: Tensor, target: Tensor) -> Tensor:
    """0.5 (1 - cos) + 0.5 mean_d SmoothL1(beta=1) over the last axis, in float32 (float64 stays)."""
    guess, target = _wide(guess), _wide(target)
    with torch.autocast(guess.device.type, enabled=False):
        apart = smooth_l1_loss(guess, target, reduction="none", beta=1.0).mean(dim=-1)
        return 0.5 * (1 - cosine_similarity(guess, target, dim=-1)) + 0.5 * apart


def drop_teachers(losses_nB: Tensor, uniforms_Bn: Tensor, drop: float) -> tuple[Tensor, Tensor]:
    """(coefficients_nB, top_B): 1 for each image's highest loss (the first of equals) and where uniform >= drop."""
    top_B = losses_nB.argmax(dim=0)
    kept_nB = (uniforms_Bn >= drop).T.to(losses_nB)
    return kept_nB.scatter(0, top_B[None], 1.0), top_B


def drop_uniforms(seed: int, step: int, rank: int, batch: int, teachers: int) -> Tensor:
    """One step's draws on one process: float64 (batch, teachers) in [0, 1), a pure function of the integers."""
    raw = draws.words(draws.Purpose.DROP_TEACHER, seed, step, rank, batch * teachers)
    return torch.from_numpy(draws.uniforms(raw)).reshape(batch, teachers)


def _over_batch(losses_nB: Tensor, coefficients_nB: Tensor) -> Tensor:
    """sum_ti c L / sum_ti c over one process's batch: an image with four teachers counts four times."""
    return (coefficients_nB * losses_nB).sum() / coefficients_nB.sum()


def _per_image(losses_nB: Tensor, coefficients_nB: Tensor) -> Tensor:
    """mean_i (sum_t c L / sum_t c): every image weighs the same."""
    return ((coefficients_nB * losses_nB).sum(dim=0) / coefficients_nB.sum(dim=0)).mean()


NORMALIZE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"batch": _over_batch, "image": _per_image}


def _wide(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
