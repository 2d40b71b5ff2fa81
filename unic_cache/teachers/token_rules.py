"""Which activations of a timm model become tokens: named rules, and one forward pass for all of them.

Shape letters: B images, N all tokens, P prefix tokens (class, registers), T grid tokens, D channels, H W the grid.

| summary rule | value | grid rule | value |
|---|---|---|---|
| norm-cls, norm-cls:p | prefix token 0, or p, after the final norm | norm-patch | tokens P.. after the final norm |
| raw-cls, raw-cls:p | the same after the last block, un-normed | raw-patch | tokens P.. likewise, un-normed |
| fc-norm-cls | fc_norm(prefix token 0), if that is the final norm | fc-norm-patch | fc_norm(tokens P..), likewise |
| fc-norm-mean | fc_norm(mean of the last block's tokens P..) | block:i | norm(tokens P.. after block i), i from 0 |
| grid-mean | mean of the grid tokens | raw-block:i | tokens P.. after block i, un-normed |
| pooled | the classifier's input: attention pool, mean or token | stride16-map | the last map with 16 px per cell |
| block:i | norm(prefix token 0 after block i) | norm-map | the last map after the head's norm |
| raw-block:i | prefix token 0 after block i, un-normed | neck | the map after SAM's neck |

Maps are read row by row. A teacher with two class tokens has {"cls": "norm-cls", "cls-1": "norm-cls:1"}.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from unic_cache.errors import TeacherError
from unic_cache.teachers.spec import TeacherSpec

Tokens = dict[str, torch.Tensor]
Split = tuple[torch.Tensor, torch.Tensor]  # prefix (B, P, D) and grid tokens (B, T, D)


@dataclass
class Activations:
    """What one forward pass gives the rules."""

    model: Any
    last: Any = None  # the input of the model's head
    blocks: dict[int, Split] = field(default_factory=dict)  # un-normed, by the block's index
    grid_BTD: torch.Tensor | None = None  # of the first grid rule

    def split(self) -> Split:
        """The last activations, as prefix and grid tokens. TeacherError if they are a map."""
        if self.last.ndim != 3:
            raise TeacherError(f"{type(self.model).__name__} ends in a map, not in a sequence of tokens; {MAPS_HAVE}")
        prefix = prefix_tokens(self.model)
        return self.last[:, :prefix], self.last[:, prefix:]

    def raw(self) -> Split:
        """The last block's tokens without a norm."""
        return self.blocks[_depth(self.model) - 1] if has_norm(self.model) else self.split()


def tokens(model: Any, images_BCHW: torch.Tensor, spec: TeacherSpec) -> Tokens:
    """Every kind of the spec's rules, summary tokens (B, D) and grid tokens (B, T, D), of normalised images.

    TeacherError if the model has not what a rule reads.
    """
    check_rules(model, spec)
    seen = _forward(model, images_BCHW, {*spec.grid_rules.values(), *spec.summary_rules.values()})
    grids: Tokens = {}
    for kind, rule in spec.grid_rules.items():
        name, _, number = rule.partition(":")
        grids[kind] = GRID_RULES[name](seen, number)
    seen.grid_BTD = next(iter(grids.values()), None)
    found: Tokens = {}
    for kind, rule in spec.summary_rules.items():
        name, _, number = rule.partition(":")
        found[kind] = SUMMARY_RULES[name](seen, number)
    return found | grids


def check_rules(model: Any, spec: TeacherSpec) -> None:
    """TeacherError if the model lacks the norm, the prefix token, the block or the map that a rule reads."""
    for rule in (*spec.summary_rules.values(), *spec.grid_rules.values()):
        name, _, number = rule.partition(":")
        reason = next((why for names, lacks in LACKS if name in names and (why := lacks(model, number))), None)
        if reason is None and name in BLOCK_RULES and rule in spec.summary_rules.values():
            reason = _no_token(model, "0")
        if reason is not None:
            raise TeacherError(f"teacher {spec.name}: rule {rule} does not fit {spec.arch}: {reason}")


def prefix_tokens(model: Any) -> int:
    """How many tokens precede the grid: class token, distillation token, registers."""
    count = getattr(model, "num_prefix_tokens", None)
    return int(getattr(model, "cls_token", None) is not None) if count is None else int(count)


def has_norm(model: Any, name: str = "norm") -> bool:
    """Whether the model has a norm of that name that does something."""
    norm = getattr(model, name, None)
    return norm is not None and not isinstance(norm, nn.Identity)


def stride16_index(model: Any) -> int | None:
    """The index of the last feature map with 16 px per cell, in timm's numbering, or None."""
    found = [index for index, reduction in enumerate(reductions(model)) if reduction == 16]
    return found[-1] if found else None


def reductions(model: Any) -> list[int]:
    """Pixels per cell of each of the model's feature maps; a plain ViT repeats its patch size."""
    return [int(info["reduction"]) for info in getattr(model.feature_info, "info", model.feature_info)]


def _depth(model: Any) -> int:
    return len(reductions(model))


def _forward(model: Any, images_BCHW: torch.Tensor, rules: Iterable[str]) -> Activations:
    parts = [rule.partition(":")[::2] for rule in rules]
    names = {name for name, _ in parts}
    if "stride16-map" in names:
        return _pyramid(model, images_BCHW)
    blocks = {int(number) for name, number in parts if name in BLOCK_RULES}
    if names & RAW_RULES and has_norm(model):
        blocks.add(_depth(model) - 1)
    whole = bool(names - BLOCK_RULES)
    if not blocks:
        return Activations(model, model.forward_features(images_BCHW))
    answer = model.forward_intermediates(
        images_BCHW,
        indices=sorted(blocks),
        norm=False,
        stop_early=not whole,
        output_fmt="NLC",
        intermediates_only=not whole,
        **({"return_prefix_tokens": True} if prefix_tokens(model) else {}),
    )
    last, outputs = answer if whole else (None, answer)
    return Activations(model, last, dict(zip(sorted(blocks), (_split(output) for output in outputs), strict=True)))


def _split(output: Any) -> Split:
    """timm's (grid, prefix), or the grid alone where there is no prefix."""
    grid_BTD, prefix_BPD = output if isinstance(output, (tuple, list)) else (output, output[:, :0])
    return prefix_BPD, grid_BTD


def _pyramid(model: Any, images_BCHW: torch.Tensor) -> Activations:
    """Asks for the last map too: some models stop after the last one asked for."""
    index = stride16_index(model)
    assert index is not None
    indices = [index, _depth(model) - 1]
    last, (map_BDHW, *_) = model.forward_intermediates(images_BCHW, indices=indices, output_fmt="NCHW")
    grid_BTD = _rows(map_BDHW)
    return Activations(model, last, {index: (grid_BTD[:, :0], grid_BTD)})


def _rows(map_BDHW: torch.Tensor) -> torch.Tensor:
    """(B, H * W, D), row by row."""
    return map_BDHW.flatten(2).transpose(1, 2)


def _mean(seen: Activations) -> torch.Tensor:
    grid_BTD = seen.split()[1] if seen.grid_BTD is None else seen.grid_BTD
    return grid_BTD.mean(dim=1)


MAPS_HAVE = "for patches take stride16-map or norm-map, for a summary pooled"
RAW_RULES = frozenset({"raw-cls", "raw-patch"})
BLOCK_RULES = frozenset({"block", "raw-block"})
Summary = Callable[[Activations, str], torch.Tensor]
SUMMARY_RULES: dict[str, Summary] = {
    "norm-cls": lambda seen, number: seen.split()[0][:, int(number or 0)],
    "raw-cls": lambda seen, number: seen.raw()[0][:, int(number or 0)],
    "fc-norm-cls": lambda seen, _: seen.model.fc_norm(seen.split()[0][:, 0]),
    "fc-norm-mean": lambda seen, _: seen.model.fc_norm(seen.split()[1].mean(dim=1)),
    "grid-mean": lambda seen, _: _mean(seen),
    "pooled": lambda seen, _: seen.model.forward_head(seen.last, pre_logits=True),
    "block": lambda seen, number: seen.model.norm(seen.blocks[int(number)][0])[:, 0],
    "raw-block": lambda seen, number: seen.blocks[int(number)][0][:, 0],
}
GRID_RULES: dict[str, Summary] = {
    "norm-patch": lambda seen, _: seen.split()[1],
    "raw-patch": lambda seen, _: seen.raw()[1],
    "fc-norm-patch": lambda seen, _: seen.model.fc_norm(seen.split()[1]),
    "stride16-map": lambda seen, _: next(iter(seen.blocks.values()))[1],
    "norm-map": lambda seen, _: _rows(seen.model.head.norm(seen.last)),
    "neck": lambda seen, _: _rows(seen.last),
    "block": lambda seen, number: seen.model.norm(seen.blocks[int(number)][1]),
    "raw-block": lambda seen, number: seen.blocks[int(number)][1],
}


def _no_norm(model: Any, _: str) -> str | None:
    other = "fc-norm-" if has_norm(model, "fc_norm") else "raw-"
    return (
        None
        if not isinstance(getattr(model, "norm", None), nn.Identity)
        else f"it ends without a norm; take {other}cls, {other}patch"
    )


def _no_fc_norm(model: Any, _: str) -> str | None:
    return None if has_norm(model, "fc_norm") else "it has no fc_norm; take norm-cls, norm-patch or pooled"


def _no_token(model: Any, number: str) -> str | None:
    count = prefix_tokens(model)
    return None if int(number or 0) < count else f"it has {count} prefix tokens; for a summary take pooled or grid-mean"


def _no_block(model: Any, number: str) -> str | None:
    last = _depth(model) - 1
    if len(set(reductions(model))) > 1:
        return f"its blocks have maps of several sizes; {MAPS_HAVE}"
    if "return_prefix_tokens" not in inspect.signature(model.forward_intermediates).parameters:
        return f"timm gives a {type(model).__name__}'s blocks as maps"
    return None if int(number) <= last else f"its blocks are 0 to {last}"


def _lacks(module: Any, name: str, reason: str) -> str | None:
    return None if has_norm(module, name) else reason


LACKS: tuple[tuple[frozenset[str], Callable[[Any, str], str | None]], ...] = (  # rules, and why a model lacks them
    (frozenset({"norm-cls", "norm-patch", "block"}), _no_norm),
    (frozenset({"fc-norm-cls", "fc-norm-patch", "fc-norm-mean"}), _no_fc_norm),
    (frozenset({"norm-cls", "raw-cls"}), _no_token),
    (BLOCK_RULES, _no_block),
    (frozenset({"stride16-map"}), lambda model, _: None if stride16_index(model) is not None else "no map has 16 px"),
    (frozenset({"norm-map"}), lambda model, _: _lacks(getattr(model, "head", None), "norm", "its head has no norm")),
    (frozenset({"neck"}), lambda model, _: _lacks(model, "neck", "it has no neck")),
)
