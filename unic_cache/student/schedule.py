"""UNIC's optimiser and schedule: AdamW, linear warm-up, cosine to a floor."""

import math
from typing import Any

import torch
from torch import nn

BETAS = (0.9, 0.99)
EPSILON = 1e-8


def learning_rate(step: int, total: int, warmup: int, peak: float, minimum: float) -> float:
    """The rate of step `step` in 0 .. total - 1, as in the authors' runs.

    It is peak * step / (warmup - 1) for the first `warmup` steps, from 0 to the peak, then
    minimum + (peak - minimum) (1 + cos(pi (step - warmup) / (total - warmup))) / 2. The cosine's first step is at the
    peak too, and its last one is a step above `minimum`; a warm-up of one step is at 0. `total` and `warmup` count
    steps.
    """
    if step < warmup:
        return peak * step / max(1, warmup - 1)
    share = min(1.0, (step - warmup) / (total - warmup))
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * share))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: decayed (class and position tokens too); not (1-D parameters, biases)."""
    trained = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
    plain = [value for name, value in trained if value.ndim < 2 or name.endswith(".bias")]
    decayed = [value for name, value in trained if value.ndim >= 2 and not name.endswith(".bias")]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def optimizer(module: nn.Module, peak: float, weight_decay: float) -> torch.optim.AdamW:
    """UNIC's AdamW over the trainable parameters; before each step the caller sets the rate from `learning_rate`."""
    return torch.optim.AdamW(parameter_groups(module, weight_decay), lr=peak, betas=BETAS, eps=EPSILON, fused=True)
