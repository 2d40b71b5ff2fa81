"""Any timm model as a teacher: `timm:NAME` to a spec, from timm's description and a dry run without memory.

The model is built and run on torch's meta device, where tensors have shapes but no values; so even a giant takes a
second. Its structure decides the rules:

- a sequence of tokens at one scale, with a class token, no attention pool and no `fc_norm`: norm-cls, or raw-cls if the
  model ends without a norm;
- another sequence of tokens (no class token, an attention pool, or pooled before its last norm): pooled;
- either way its patches: norm-patch, or raw-patch if the model ends without a norm;
- feature maps at several scales (any CNN; Swin, ConvNeXt, MaxViT ...): pooled and stride16-map.

Where structure does not tell, as of models that were published without a classifier, `presets/family.py` does.
"""

import difflib
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from unic_cache.errors import TeacherError
from unic_cache.teachers.presets.family import rules_of
from unic_cache.teachers.spec import Option, Rules, TeacherSpec
from unic_cache.teachers.token_rules import has_norm, prefix_tokens, reductions, stride16_index, tokens
from unic_cache.token_kinds import CLS, PATCH
from unic_cache.weights.conversion import quickgelu_name

log = logging.getLogger(__name__)

CANNOT = (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError)  # what timm's models raise


def derive(name: str, size: int | None) -> TeacherSpec:
    """The spec of timm's model `name` at inputs of `size` px (None: its own size).

    TeacherError if timm has no such model, or the model cannot be a teacher at that size.
    """
    spec, better = _derived(name, size), quickgelu_name(name)
    if better is not None:
        log.warning(
            "teacher timm:%s: its weights were trained with QuickGELU, and run with GELU here: say timm:%s",
            name,
            better,
        )
    return spec


@functools.cache  # a spec is asked for many times, and the dry runs take a second
def _derived(name: str, size: int | None) -> TeacherSpec:
    config = _config(name)
    arch = f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)
    known = Known(f"timm:{name}", arch, arch, config.fixed_input_size, tuple(config.mean), tuple(config.std))
    origin = {
        "about": "a timm model",
        "source": "timm",
        "published": f"timm, as {arch}",
        "licence": config.license or "not stated by timm; see the model's card",
    }
    return spec_of(known, int(config.input_size[-1]), size, origin)


@dataclass(frozen=True)
class Known:
    """What a description says of a timm model."""

    name: str  # of the teacher, without a size
    arch: str  # for timm.create_model
    tagged: str  # with the tag of its weights: names the models whose structure does not tell their targets
    sized: bool  # whether timm builds it for one input size
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    options: tuple[tuple[str, Option], ...] = ()  # more arguments of timm.create_model


def spec_of(known: Known, own: int, size: int | None, origin: Mapping[str, Any]) -> TeacherSpec:
    """The spec of a model of `own` px at inputs of `size` px (None: its own); `origin` is where its weights are from.

    TeacherError if it cannot be a teacher at that size.
    """
    at, options = own if size is None else size, dict(known.options)
    model, features = _dry_run(known.name, known.arch, own, options)
    stride, summary_rules, grid_rules = _rules(known, model, features)
    sized: dict[str, Option] = {"img_size": at} if known.sized or "img_size" in options else {}
    spec = TeacherSpec(
        name=known.name if at == own else f"{known.name}@{at}",
        arch=known.arch,
        arch_options=tuple({**options, **sized}.items()),
        input_size=at,
        stride=stride,
        mean=known.mean,
        std=known.std,
        summary_rules=summary_rules,
        grid_rules=grid_rules,
        key_layout="timm",
        position_rule="timm",
        **origin,
    )
    _check_grid(spec)
    return spec


def structure_rules(name: str, model: Any, size: int) -> tuple[int, Rules, Rules]:
    """Stride in px, summary rules and grid rules of a timm model on the meta device. TeacherError if it has none."""
    with torch.inference_mode():
        features = model.forward_features(torch.empty(1, 3, size, size, device="meta"))
    known = Known(name, "", "", sized=True, mean=(0.0,) * 3, std=(1.0,) * 3)
    return _rules(known, model, features)


def meta_model(arch: str, options: dict[str, Option], headless: bool = False) -> Any:
    """The timm model without a classifier and without memory: shapes only. See `TeacherSpec.headless`."""
    with torch.device("meta"):
        model = timm.create_model(arch, num_classes=0, **options).eval()
    if headless:
        model.pre_logits = nn.Identity()
    return model


def _config(name: str) -> Any:
    known = [*timm.list_models(), *timm.list_pretrained()]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        hint = (
            f"close names: {', '.join(f'timm:{match}' for match in close)}" if close else "timm.list_models() has all"
        )
        raise TeacherError(f"timm {timm.__version__} has no model {name!r}; {hint}")
    config = timm.get_pretrained_cfg(name)
    if config is None:
        raise TeacherError(f"timm {timm.__version__} does not describe {name!r} (mean, std, input size)")
    return config


def _dry_run(name: str, arch: str, size: int, options: dict[str, Option]) -> tuple[Any, torch.Tensor]:
    try:
        model = meta_model(arch, options)
        with torch.inference_mode():
            features = model.forward_features(torch.empty(1, 3, size, size, device="meta"))
    except CANNOT as error:
        raise TeacherError(f"teacher {name}: timm cannot run {arch} at {size} px: {error}") from error
    return model, features


def _rules(known: Known, model: Any, features: Any) -> tuple[int, Rules, Rules]:
    """Stride in px, summary rules, grid rules."""
    scales, rules = reductions(model), rules_of(known.tagged)
    if rules is not None:
        return scales[-1], *rules
    if isinstance(features, torch.Tensor) and features.ndim == 3 and len(set(scales)) == 1:
        pools = getattr(model, "attn_pool", None) is not None or has_norm(model, "fc_norm")
        prefix, normed = getattr(model, "cls_token", None) is not None, has_norm(model)
        summary = "pooled" if pools or not prefix else "norm-cls" if normed else "raw-cls"
        return scales[0], {CLS: summary}, {PATCH: "norm-patch" if normed else "raw-patch"}
    if not hasattr(model, "forward_intermediates") or stride16_index(model) is None:
        raise TeacherError(
            f"teacher {known.name}: it gives neither one sequence of patch tokens nor a map with 16 px a cell "
            f"(its maps have {scales} px a cell); choose another model"
        )
    return 16, {CLS: "pooled"}, {PATCH: "stride16-map"}


def _check_grid(spec: TeacherSpec) -> None:
    model, _ = _dry_run(spec.name, spec.arch, spec.input_size, dict(spec.arch_options))
    try:
        with torch.inference_mode():
            patch_BTD = tokens(model, torch.empty(1, 3, spec.input_size, spec.input_size, device="meta"), spec)[PATCH]
    except CANNOT as error:
        raise TeacherError(f"teacher {spec.name}: timm's {spec.arch} does not give its tokens: {error}") from error
    side = spec.input_size // spec.stride
    if patch_BTD.ndim != 3 or patch_BTD.shape[1] != side * side:
        raise TeacherError(
            f"teacher {spec.name}: its patch tokens have shape {tuple(patch_BTD.shape)} after {prefix_tokens(model)} "
            f"prefix tokens, and not the {side} x {side} tokens of {spec.input_size} px at {spec.stride} px each"
        )
