"""One step's arithmetic: kept codes to targets, views to guesses, both to loss terms; in training and on held-out rows.

Letters: B images, H and W pixels, n teachers.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipelines.training.runlog import Meter
from pipelines.training.targets import Targets
from unic_cache.arithmetic import float32_products
from unic_cache.cache import CachedTeacher
from unic_cache.config import DistillConfig
from unic_cache.draws import Purpose, words
from unic_cache.errors import UnicCacheError
from unic_cache.stream.address import Address
from unic_cache.stream.batches import Batch, Stream
from unic_cache.stream.order import Order
from unic_cache.stream.rows import Rows
from unic_cache.student.backbone import EncoderSpec, prepare
from unic_cache.student.ladder import TargetSpec
from unic_cache.student.loss import LossTerms, distillation_loss, drop_uniforms
from unic_cache.tokens import grid_of, kinds_to_json


@dataclass(frozen=True)
class Learner:
    """The model in training (wrapped by accelerate) and all that its loss depends on."""

    model: nn.Module
    spec: EncoderSpec
    teachers: tuple[CachedTeacher, ...]
    targets: Targets
    config: DistillConfig
    accelerator: Accelerator

    @property
    def local_batch(self) -> int:
        """Images of one process in a step."""
        return self.config.batch_size // int(self.accelerator.num_processes)

    def meter(self) -> Meter:
        """An empty meter of this learner's terms."""
        return Meter(self.accelerator, {t.name: list(t.kinds) for t in self.teachers})

    def batches(self, order: Order, start: int, total: int) -> Iterator[list[Address]]:
        """This process's part of the batches of steps [start, total)."""
        for step in range(start, total):
            first = step * self.config.batch_size + self.accelerator.process_index * self.local_batch
            yield order.samples(first, first + self.local_batch)

    def train_terms(self, batch: Batch, step: int) -> LossTerms:
        """The loss of a training step, with the draws that belong to the step: dropped paths and dropped teachers."""
        seed, rank = self.config.seed, self.accelerator.process_index
        torch.manual_seed(int(words(Purpose.TORCH, seed, step, rank, 1)[0] >> 1))
        uniforms_Bn = drop_uniforms(seed, step, rank, len(batch.views_BHWC), len(self.teachers))
        return self._terms(batch, uniforms_Bn, self.config.drop_teacher, self.config.normalization)

    @torch.no_grad()
    def validate(self, stream: Stream, rows: Rows, number: int) -> dict[str, Any]:
        """The loss on held-out rows under view `number`, all teachers counting; split over the processes."""
        self.model.eval()
        places = range(0, len(rows), self.local_batch)
        every = [[rows.address(at, number) for at in range(i, min(i + self.local_batch, len(rows)))] for i in places]
        mine = every[self.accelerator.process_index :: self.accelerator.num_processes]
        meter = self.meter()
        for batch in stream.batches(iter(mine)):
            count = len(batch.views_BHWC)
            keep_all = torch.zeros(count, len(self.teachers))
            meter.add(self._terms(batch, keep_all, 0.0, "image"), count - batch.broken, batch.broken)
        self.model.train()
        return meter.read()

    def _terms(self, batch: Batch, uniforms_Bn: Tensor, drop: float, normalization: str) -> LossTerms:
        """The loss over the good images of a batch; 0, but still a function of the model, where there are none."""
        guesses, targets = self._both_sides(batch)
        uniforms_Bn = uniforms_Bn.to(self.accelerator.device)
        if batch.broken in {0, len(batch.good_B)}:
            terms = distillation_loss(guesses, targets, uniforms_Bn, drop, normalization)
            return dataclasses.replace(terms, loss=terms.loss * 0) if batch.broken else terms
        rows = batch.good_B.nonzero().flatten().to(self.accelerator.device)
        good = [{name: _rows(side[name], rows) for name in side} for side in (guesses, targets)]
        return distillation_loss(good[0], good[1], uniforms_Bn[rows], drop, normalization)

    def _both_sides(self, batch: Batch) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Tensor]]]:
        """What the student guesses and what the teachers said: {teacher: {"cls": (B, D), "patch": (B, N, Dp)}}."""
        views_BHWC = batch.views_BHWC.to(self.accelerator.device, non_blocking=True)
        with float32_products(tf32=False):
            targets, kept = self.targets(batch, views_BHWC)
        return self.model(prepare(views_BHWC, self.spec), kept), targets


def target_spec(teacher: CachedTeacher) -> TargetSpec:
    """What the ladder must guess of a teacher."""
    dims = kinds_to_json(teacher.kinds)
    return TargetSpec(dims["cls_dim"], dims["patch_dim"], grid_of(teacher.kinds))


def finite(loss: float, step: int) -> float:
    """The loss, or UnicCacheError where training has diverged."""
    if not math.isfinite(loss):
        raise UnicCacheError(
            f"the loss is {loss} at step {step}: training diverged. Lower --lr, lengthen --warmup, or use --precision "
            "bf16; the last checkpoint stands and can be resumed"
        )
    return loss


def _rows(tokens: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Some images' tokens."""
    return {kind: values[rows] for kind, values in tokens.items()}
