"""From the loss of a batch, taken in one part or several, to its gradient, and the norm that this is clipped to.

A batch's loss is total / count, and both are sums over its images. But `count` is known only after the last part: which
teachers count for an image depends on its losses. So the parts before it add the gradients of total / UNIT; these are
multiplied by UNIT / count once the last part's loss is known, just before its own gradient, of total / count, is added.
The sum is that of the whole batch but for rounding, also in several processes, which meet in the last part alone; only
a model that normalizes by its batch (BatchNorm) sees the parts.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from unic_cache.student.loss import LossTerms, sum_of

UNIT = 1024.0  # of the count, so that fp16's scaled gradients neither overflow nor vanish before they are averaged


@dataclass(frozen=True)
class Gradients:
    """The gradients of a model, as accelerate wraps it, over the `parts` of a batch."""

    accelerator: Accelerator
    model: nn.Module
    parts: int
    clip: float | None = None  # largest norm

    def alone(self, part: int) -> AbstractContextManager[Any]:
        """Wrap a part's forward and backward pass: but for the last one, processes do not wait for each other."""
        together = part + 1 == self.parts
        return nullcontext() if together else self.accelerator.no_sync(self.model)

    def add(self, terms: Sequence[LossTerms]) -> None:
        """Add the last of the parts' terms so far; call it after every part."""
        last = len(terms) == self.parts
        if self.parts == 1:
            loss = terms[0].loss
        elif not last:
            loss = terms[-1].total / UNIT
        else:
            count = sum_of([part.count for part in terms]).clamp(min=1)
            grads = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
            torch._foreach_mul_(grads, UNIT / count)
            loss = terms[-1].total / count
        self.accelerator.backward(loss)

    def clipped(self) -> Tensor | None:
        """Clip the gradient; its norm before that, on the device. None, and nothing is done, without a limit."""
        if self.clip is None:
            return None
        norm: Tensor = self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
        return norm.detach()
