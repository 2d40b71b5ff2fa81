"""Watches timm's own converters: what they resample to fit, and which tensors of a model they fill.

A converter maps names and layouts of other code bases to a timm model's. It also silently resamples tensors of another
shape, and may leave missing ones at random; so each conversion runs under a `Watch`.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

RESAMPLERS = (functional.interpolate, functional.grid_sample, torch.linalg.pinv)


class Watch(TorchFunctionMode):
    """While entered, records which tensors are copied into, and what is resampled, from which shape."""

    def __init__(self) -> None:
        super().__init__()
        self.filled: set[int] = set()  # ids of tensors
        self.resampled: list[tuple[int, ...]] = []  # shapes before
        self.kernels = False  # whether patch kernels were resampled

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Record the call, and make it."""
        del types
        if func is torch.Tensor.copy_:
            self.filled.add(id(args[0]))
        if func in RESAMPLERS:
            self.kernels |= func is torch.linalg.pinv
            self.resampled.append(tuple(args[0].shape if args else ()))
        return func(*args, **(kwargs or {}))

    def left_at_random(self, model: nn.Module) -> list[str]:
        """Names of the model's tensors that nothing was copied into."""
        every = model.state_dict(keep_vars=True)
        return [name for name, tensor in every.items() if id(tensor) not in self.filled]


def lost_bias(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> str | None:
    """The name of a bias of attention, not all zero, that timm's converter of DINOv3 left out; None if none is lost."""
    if any(name.endswith(("qkv.bias", "q_bias", "q_proj.bias")) for name in after):
        return None
    return next((name for name, bias in before.items() if name.endswith("attn.qkv.bias") and bias.any()), None)


def quickgelu_name(name: str) -> str | None:
    """timm's name for the same weights with the activation they were trained with, if `name` has another; else None.

    OpenAI's, Meta's and some of Apple's CLIPs were trained with QuickGELU. timm also has their weights under names
    without `quickgelu`, and runs those with GELU.
    """
    arch, _, tag = name.partition(".")
    if "_clip_" not in arch or "quickgelu" in arch:
        return None
    config = timm.get_pretrained_cfg(name) if timm.is_model(arch) else None
    other = arch.replace("_clip_", "_clip_quickgelu_") + "." + (tag or str(getattr(config, "tag", "")))
    return other if other in timm.list_pretrained() else None
