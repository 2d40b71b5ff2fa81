"""Which activations of a timm model become tokens: named rules, and one forward pass for all of them.

Shape letters: B images, N all tokens, P prefix tokens (class, registers), T grid tokens, D channels, H W the grid.

| summary rule | value | grid rule | value |
|---|---|---|---|
| norm-cls | prefix token 0 after the final norm | norm-patch | tokens P.. after the final norm |
| norm-cls:p | prefix token p after the final norm | raw-patch | tokens P.. of the last block, without a final norm |
| fc-norm-mean | fc_norm(mean of grid tokens) | stride16-map | the last map with 16 px per cell, row by row |
| grid-mean | mean of grid tokens | block:i | norm(tokens P.. after block i), i from 0 |
| pooled | the classifier's input | | |
| block:i | norm(prefix token 0 after block i) | | |

A teacher with two class tokens has `summary_rules={"cls": "norm-cls", "cls-1": "norm-cls:1"}`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from unic_cache.teachers.spec import TeacherSpec

Tokens = dict[str, torch.Tensor]


class Activations(NamedTuple):
    """What one forward pass gives the rules."""

    last: Any  # the input of the model's head
    prefix_BPD: torch.Tensor
    grid_BTD: torch.Tensor


def tokens(model: Any, images_BCHW: torch.Tensor, spec: TeacherSpec) -> Tokens:
    """Every kind of the spec's rules, summary tokens (B, D) and grid tokens (B, T, D), of normalised images."""
    deciding, _, block = next(iter((*spec.grid_rules.values(), *spec.summary_rules.values()))).partition(":")
    seen = GRID_RULES.get(deciding, _whole)(model, images_BCHW, block)
    found: Tokens = {}
    for kind, rule in spec.summary_rules.items():
        name, _, number = rule.partition(":")
        found[kind] = SUMMARY_RULES[name](model, seen, number)
    return found | dict.fromkeys(spec.grid_rules, seen.grid_BTD)


def prefix_tokens(model: Any) -> int:
    """How many tokens precede the grid: class token, distillation token, registers."""
    count = getattr(model, "num_prefix_tokens", None)
    return int(getattr(model, "cls_token", None) is not None) if count is None else int(count)


def stride16_index(model: Any) -> int | None:
    """The index of the last feature map with 16 px per cell, in timm's numbering, or None."""
    found = [index for index, reduction in enumerate(reductions(model)) if reduction == 16]
    return found[-1] if found else None


def reductions(model: Any) -> list[int]:
    """Pixels per cell of each of the model's feature maps; a plain ViT repeats its patch size."""
    return [int(info["reduction"]) for info in getattr(model.feature_info, "info", model.feature_info)]


def _whole(model: Any, images_BCHW: torch.Tensor, _block: str) -> Activations:
    features_BND = model.forward_features(images_BCHW)
    prefix = prefix_tokens(model)
    return Activations(features_BND, features_BND[:, :prefix], features_BND[:, prefix:])


def _pyramid(model: Any, images_BCHW: torch.Tensor, _block: str) -> Activations:
    """Asks for the last map too: some models stop after the last one asked for."""
    indices = [stride16_index(model), len(reductions(model)) - 1]
    last, (map_BDHW, *_) = model.forward_intermediates(images_BCHW, indices=indices, output_fmt="NCHW")
    grid_BTD = map_BDHW.flatten(2).transpose(1, 2)
    return Activations(last, grid_BTD[:, :0], grid_BTD)


def _block(model: Any, images_BCHW: torch.Tensor, block: str) -> Activations:
    """Stops after that block."""
    ((grid_BTD, prefix_BPD),) = model.forward_intermediates(
        images_BCHW,
        indices=[int(block)],
        norm=True,
        stop_early=True,
        return_prefix_tokens=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    return Activations(None, prefix_BPD, grid_BTD)


SUMMARY_RULES: dict[str, Callable[[Any, Activations, str], torch.Tensor]] = {
    "norm-cls": lambda _, seen, number: seen.prefix_BPD[:, int(number or 0)],
    "fc-norm-mean": lambda model, seen, _: model.fc_norm(seen.grid_BTD.mean(dim=1)),
    "grid-mean": lambda _, seen, __: seen.grid_BTD.mean(dim=1),
    "pooled": lambda model, seen, _: model.forward_head(seen.last, pre_logits=True),
    "block": lambda _, seen, __: seen.prefix_BPD[:, 0],
}
GRID_RULES: dict[str, Callable[[Any, torch.Tensor, str], Activations]] = {  # the pass that gives the grid tokens
    "norm-patch": _whole,
    "raw-patch": _whole,
    "stride16-map": _pyramid,
    "block": _block,
}
