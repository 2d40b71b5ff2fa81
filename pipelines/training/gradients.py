"""From the loss of a batch, over all processes and parts, to its gradient, and the norm that this is clipped to.

The loss is the mean of total / count over the groups of the batch (by default one: all of it). Totals and counts are
sums over images, but a count is known only after its group's last forward pass, wherever that is: which teachers count
for an image depends on its losses. So

- processes sum their totals and counts after the last forward pass, and each one's backward pass weighs its totals by
  the whole batch's counts, times the number of processes, by which data-parallel averaging divides,
- the parts before the last one add the gradients of total / UNIT; these are multiplied by UNIT / count once that is
  known. Gradients of groups that are complete before the last part are kept apart: one more copy of the gradients.

The sum is that of the whole batch but for rounding. Processes wait for each other in the last part alone. Only a model
that normalizes by its batch (BatchNorm) sees processes and parts.

Letters: G groups.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipelines.training.batch_parts import BatchParts
from unic_cache.student.loss import LossTerms, filled, mean_of_groups, sum_of
from unic_cache.student.sharding import local, whole

UNIT = 1024.0  # of the count, so that fp16's scaled gradients neither overflow nor vanish before they are averaged


@dataclass(frozen=True)
class Sums:
    """Of a whole batch, over all processes and parts; the same in every process."""

    totals_G: Tensor
    counts_G: Tensor
    images: Tensor  # scalar: those that count

    @property
    def loss(self) -> Tensor:
        """The loss of the batch."""
        return mean_of_groups(self.totals_G, self.counts_G)


def sums_over_processes(accelerator: Accelerator, terms: LossTerms, images: int) -> Sums:
    """The sums of all processes' `terms`, each of `images` that count; all processes meet here."""
    own = torch.cat([terms.totals.detach(), terms.counts, terms.counts.new_full((1,), images)])
    every: Tensor = accelerator.reduce(own, "sum")
    totals_G, counts_G = every[:-1].chunk(2)
    return Sums(totals_G, counts_G, every[-1])


class Gradients:
    """The gradients of one step of a model, as accelerate wraps it."""

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, layout: BatchParts, clip: float | None = None
    ) -> None:
        """`clip` is the largest norm."""
        self._accelerator, self._model, self._layout, self._clip = accelerator, model, layout, clip
        self._settled: dict[nn.Parameter, Tensor] = {}  # times UNIT: of groups whose parts are all done

    def alone(self, part: int) -> AbstractContextManager[Any]:
        """Wrap a part's forward and backward pass: but for the last one, processes do not wait for each other."""
        together = part + 1 == self._layout.parts
        return nullcontext() if together else self._accelerator.no_sync(self._model)

    def add(self, parts: Sequence[LossTerms], sums: Sums | None = None) -> None:
        """Add the last of the parts' terms so far; call it after every part, after the last one with the sums."""
        layout, terms = self._layout, parts[-1]
        group = layout.first(len(parts) - 1) // layout.group  # that all parts so far are of, unless they are whole ones
        if sums is None:
            whole = layout.whole_groups
            total = (terms.totals / terms.counts.clamp(min=1)).sum() if whole else terms.totals.sum()
            self._accelerator.backward(total / UNIT)
            if layout.ends_group(len(parts) - 1) and not whole:
                self._scale(1 / sum_of([part.counts[group] for part in parts]).clamp(min=1))
                self._settle()
        elif layout.parts == layout.processes == 1:
            self._accelerator.backward(terms.loss)
        else:
            share = layout.processes / filled(sums.counts_G)
            weights_G = share / sums.counts_G.clamp(min=1)
            self._scale(UNIT * (share if layout.whole_groups else weights_G[group]))
            self._take_settled(UNIT * share)
            self._accelerator.backward((terms.totals * weights_G).sum())

    def clipped(self) -> Tensor | None:
        """Clip the gradient; its norm before that, on the device. None, and nothing is done, without a limit."""
        if self._clip is None:
            return None
        norm: Tensor = self._accelerator.clip_grad_norm_(self._model.parameters(), self._clip)
        return whole(norm.detach())

    def _scale(self, factor: Tensor) -> None:
        grads = [parameter.grad for parameter in self._model.parameters() if parameter.grad is not None]
        if grads:
            torch._foreach_mul_(local(grads), factor)

    def _settle(self) -> None:
        """Put the gradients so far aside."""
        for parameter in self._model.parameters():
            if parameter.grad is not None:
                before = self._settled.get(parameter)
                self._settled[parameter] = parameter.grad if before is None else before.add_(parameter.grad)
                parameter.grad = None

    def _take_settled(self, factor: Tensor) -> None:
        """Add what was put aside, `factor` times."""
        if self._settled:
            torch._foreach_mul_(local([*self._settled.values()]), factor)
        for parameter, grad in self._settled.items():
            parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)
        self._settled.clear()
