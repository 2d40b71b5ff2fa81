"""What training says when it has diverged: a loss, or weights, that are not finite."""

import math

from unic_cache.errors import UnicCacheError


def finite(loss: float, step: int) -> float:
    """The loss, or UnicCacheError if training has diverged."""
    if not math.isfinite(loss):
        raise diverged(f"the loss is {loss} at step {step}")
    return loss


def diverged(what: str) -> UnicCacheError:
    """The error to raise of what is not finite."""
    return UnicCacheError(
        f"{what}: training diverged. Lower --lr, lengthen --warmup, or use --precision bf16; the last checkpoint is "
        "intact and can be resumed"
    )
