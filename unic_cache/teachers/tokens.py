"""Which activations of a timm model are the targets: named rules, one forward pass for both token types.

Shape letters: B images, N all tokens, P prefix tokens (class, registers), T patch tokens, D channels, H W the grid.

| CLS rule | value | patch rule | value |
|---|---|---|---|
| norm-cls | token 0 after the final norm | norm-patch | tokens P.. after the final norm |
| fc-norm-mean | fc_norm(mean of patch tokens) | raw-patch | tokens P.. of the last block; the model has no final norm |
| pooled | what the classifier would see | stride16-map | the last map with 16 px a cell, row by row |
| block:i | norm(token 0 after block i) | block:i | norm(tokens P.. after block i), i from 0 |
| none | - | none | - |
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from unic_cache.teachers.spec import TeacherSpec

Tokens = dict[str, torch.Tensor]


def tokens(model: Any, images_BCHW: torch.Tensor, spec: TeacherSpec) -> Tokens:
    """{"cls": (B, D), "patch": (B, T, D)} of normalised images under the spec's two rules, without what is "none"."""
    deciding = spec.cls_rule if spec.patch_rule == "none" else spec.patch_rule
    return _PASSES[deciding.partition(":")[0]](model, images_BCHW, spec)


def prefix_tokens(model: Any) -> int:
    """How many tokens come before the patches: class token, distillation token, registers."""
    count = getattr(model, "num_prefix_tokens", None)
    return int(getattr(model, "cls_token", None) is not None) if count is None else int(count)


def stride16_index(model: Any) -> int | None:
    """The index of the last feature map with 16 px a cell, in timm's numbering; None where there is none."""
    found = [index for index, reduction in enumerate(reductions(model)) if reduction == 16]
    return found[-1] if found else None


def reductions(model: Any) -> list[int]:
    """Pixels a cell of each of the model's feature maps; a plain ViT repeats its patch size."""
    return [int(info["reduction"]) for info in getattr(model.feature_info, "info", model.feature_info)]


def is_identity(module: nn.Module | None) -> bool:
    """Whether a norm is absent."""
    return module is None or isinstance(module, nn.Identity)


def _whole(model: Any, images_BCHW: torch.Tensor, spec: TeacherSpec) -> Tokens:
    features_BND = model.forward_features(images_BCHW)
    found: Tokens = {}
    if spec.cls_rule != "none":
        found["cls"] = _CLS[spec.cls_rule](model, features_BND)
    if spec.patch_rule != "none":
        found["patch"] = features_BND[:, prefix_tokens(model) :]
    return found


def _pyramid(model: Any, images_BCHW: torch.Tensor, spec: TeacherSpec) -> Tokens:
    """The last map is asked for too: some models stop after the last one that is."""
    indices = [stride16_index(model), len(reductions(model)) - 1]
    last, (map_BDHW, *_) = model.forward_intermediates(images_BCHW, indices=indices, output_fmt="NCHW")
    found = {"patch": map_BDHW.flatten(2).transpose(1, 2)}
    return found if spec.cls_rule == "none" else {"cls": _CLS[spec.cls_rule](model, last), **found}


def _block(model: Any, images_BCHW: torch.Tensor, spec: TeacherSpec) -> Tokens:
    """Blocks after the one that is asked for are not computed."""
    rules = {kind: rule for kind, rule in (("cls", spec.cls_rule), ("patch", spec.patch_rule)) if rule != "none"}
    (index,) = {int(rule.removeprefix("block:")) for rule in rules.values()}
    ((patch_BTD, prefix_BPD),) = model.forward_intermediates(
        images_BCHW,
        indices=[index],
        norm=True,
        stop_early=True,
        return_prefix_tokens=True,
        output_fmt="NLC",
        intermediates_only=True,
    )
    both = {"cls": prefix_BPD[:, 0], "patch": patch_BTD}
    return {kind: both[kind] for kind in rules}


def _norm_cls(_model: Any, features_BND: torch.Tensor) -> torch.Tensor:
    return features_BND[:, 0]


def _fc_norm_mean(model: Any, features_BND: torch.Tensor) -> torch.Tensor:
    mean_BD: torch.Tensor = model.fc_norm(features_BND[:, prefix_tokens(model) :].mean(dim=1))
    return mean_BD


def _pooled(model: Any, features: torch.Tensor) -> torch.Tensor:
    pooled_BD: torch.Tensor = model.forward_head(features, pre_logits=True)
    return pooled_BD


_CLS: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {
    "norm-cls": _norm_cls,
    "fc-norm-mean": _fc_norm_mean,
    "pooled": _pooled,
}
_PASSES: dict[str, Callable[[Any, torch.Tensor, TeacherSpec], Tokens]] = {
    "norm-patch": _whole,
    "raw-patch": _whole,
    "norm-cls": _whole,
    "fc-norm-mean": _whole,
    "pooled": _whole,
    "stride16-map": _pyramid,
    "block": _block,
}
