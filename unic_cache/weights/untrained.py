"""Checks loaded weights: signs that they are untrained are logged, values that cannot be weights are errors.

- Every norm has one scale and one shift throughout (initially 1 and 0): one training step would change that.
- A matrix holds a single value.

Both are signs, not proof. Errors are NaN, infinity, and integer codes in place of real numbers.
"""

import logging
from typing import Any

import torch
from torch import nn

from unic_cache.errors import WeightsError
from unic_cache.weights.state_dicts import State, first_names

LEAST_NORMS = 2  # of a model, for a sign
LEAST_VALUES = 16  # of a matrix, for a sign

log = logging.getLogger(__name__)


def check_values(state: State, model: nn.Module, where: str) -> None:
    """WeightsError if a tensor that is real in the model holds integers, 8-bit codes, NaN or infinity."""
    for name, own in model.state_dict().items():
        given = state.get(name)
        if given is None or not isinstance(own, torch.Tensor) or not own.is_floating_point():
            continue
        if not given.is_floating_point() or given.dtype.itemsize < 2:
            raise WeightsError(
                f"{where}: {name} is {str(given.dtype).removeprefix('torch.')}, a quantized copy; give weights of "
                "float32, float16 or bfloat16"
            )
        if not given.isfinite().all():
            raise WeightsError(f"{where}: NaN or infinite values in {name}; check its weights, or take an earlier copy")


def tell_untrained(model: nn.Module, where: str) -> None:
    """Log if a model's weights look freshly initialised, or constant."""
    scales = [
        module
        for module in model.modules()
        if "Norm" in type(module).__name__ and isinstance(getattr(module, "weight", None), torch.Tensor)
    ]
    if len(scales) >= LEAST_NORMS and all(
        _one_value(norm.weight) and _one_value(getattr(norm, "bias", None)) for norm in scales
    ):
        log.warning(
            "%s: these look like random weights, which nobody trained: all %d norms have their initial values",
            *(where, len(scales)),
        )
    flat = [
        name
        for name, tensor in model.named_parameters()
        if tensor.ndim >= 2 and min(tensor.shape[:2]) > 1 and tensor.numel() >= LEAST_VALUES and _one_value(tensor)
    ]
    if flat:
        log.warning("%s: a single value throughout %s", where, first_names(flat))


def _one_value(tensor: Any) -> bool:
    return tensor is None or bool((tensor == tensor.flatten()[0]).all())
