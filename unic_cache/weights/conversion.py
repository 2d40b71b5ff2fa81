"""timm's own converters, watched: what they resampled to fit, and which tensors of a model they filled.

A converter takes the names and layouts of other code bases to a timm model's. It also resamples what has another shape
and may leave what is missing at random, both without a word; so each conversion runs under a `Watch`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

RESAMPLERS = (functional.interpolate, functional.grid_sample, torch.linalg.pinv)


class Watch(TorchFunctionMode):
    """While it is entered: which tensors were copied into, and whether anything was resampled, and from which shape."""

    def __init__(self) -> None:
        super().__init__()
        self.filled: set[int] = set()  # ids of tensors
        self.resampled: list[tuple[int, ...]] = []  # shapes of what was
        self.kernels = False  # whether patch kernels were

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Note the call, and do it."""
        del types
        if func is torch.Tensor.copy_:
            self.filled.add(id(args[0]))
        if func in RESAMPLERS:
            self.kernels |= func is torch.linalg.pinv
            self.resampled.append(tuple(args[0].shape if args else ()))
        return func(*args, **(kwargs or {}))

    def left_at_random(self, model: nn.Module) -> list[str]:
        """The names of the model's tensors that nothing was copied into."""
        every = model.state_dict(keep_vars=True)
        return [name for name, tensor in every.items() if id(tensor) not in self.filled]


def quickgelu_name(name: str) -> str | None:
    """timm's name for the same weights in the network that they were trained in, where `name` has another activation.

    OpenAI's, Meta's and some of Apple's CLIPs were trained with QuickGELU. timm has their weights under names without
    `quickgelu` too, and runs them with GELU there.
    """
    arch, _, tag = name.partition(".")
    if "_clip_" not in arch or "quickgelu" in arch:
        return None
    config = timm.get_pretrained_cfg(name) if timm.is_model(arch) else None
    other = arch.replace("_clip_", "_clip_quickgelu_") + "." + (tag or str(getattr(config, "tag", "")))
    return other if other in timm.list_pretrained() else None
