"""One step's arithmetic: stored codes to targets, views to guesses, both to the loss; in training and in validation.

Letters: B images, H and W pixels, n teachers.
"""

import dataclasses
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipelines.training.runlog import Meter
from pipelines.training.targets import Targets
from unic_cache.cache import CachedTeacher
from unic_cache.config import DistillConfig
from unic_cache.draws import Purpose, words
from unic_cache.errors import ConfigError, UnicCacheError
from unic_cache.stream.address import Address
from unic_cache.stream.batches import Batch, Stream
from unic_cache.stream.order import Order
from unic_cache.stream.rows import Rows
from unic_cache.student.backbone import EncoderSpec, prepare
from unic_cache.student.batch_statistics import good_alone, normalizes_by_batch, statistics_kept
from unic_cache.student.loss import LossTerms, distillation_loss, drop_uniforms
from unic_cache.tf32 import float32_products
from unic_cache.token_kinds import Grid


@dataclass(frozen=True)
class Learner:
    """The model in training (wrapped by accelerate) and everything that its loss depends on."""

    model: nn.Module
    spec: EncoderSpec
    teachers: tuple[CachedTeacher, ...]
    targets: Targets
    config: DistillConfig
    accelerator: Accelerator

    @property
    def local_batch(self) -> int:
        """Images per step of one process."""
        return self.config.batch_size // int(self.accelerator.num_processes)

    def meter(self) -> Meter:
        """An empty meter for this learner's terms."""
        return Meter(self.accelerator, {teacher.name: list(teacher.kinds) for teacher in self.teachers})

    def batches(self, order: Order, steps: range) -> Iterator[list[Address]]:
        """This process's part of each step's batch."""
        for step in steps:
            first = step * self.config.batch_size + self.accelerator.process_index * self.local_batch
            yield order.samples(first, first + self.local_batch)

    def training_terms(self, batch: Batch, step: int) -> LossTerms:
        """The loss of a training step, with the step's own draws: dropped paths and dropped teachers."""
        seed, rank = self.config.seed, self.accelerator.process_index
        torch.manual_seed(int(words(Purpose.TORCH, seed, step, rank, 1)[0] >> 1))
        uniforms_Bn = drop_uniforms(seed, step, rank, len(batch.views_BHWC), len(self.teachers))
        return self._terms(self.model, batch, uniforms_Bn, self.config.drop_teacher, self.config.normalization)

    @torch.no_grad()
    def validate(self, stream: Stream, rows: Rows, number: int) -> dict[str, Any]:
        """The loss on held-out rows under view `number`, no teacher dropped; the work is split over the processes.

        Each process runs the model by itself: the data-parallel wrapper would meet the others at every batch, to share
        buffers, and they may have fewer.
        """
        share_buffers(self.accelerator, self.model)
        self.model.eval()
        model = self.accelerator.unwrap_model(self.model)
        places = range(0, len(rows), self.local_batch)
        every = [[rows.address(at, number) for at in range(i, min(i + self.local_batch, len(rows)))] for i in places]
        mine = every[self.accelerator.process_index :: self.accelerator.num_processes]
        meter = self.meter()
        for batch in stream.batches(iter(mine)):
            images = len(batch.views_BHWC)
            terms = self._terms(model, batch, torch.zeros(images, len(self.teachers)), 0.0, "image")
            meter.add(terms, images - batch.broken, batch.broken)
        self.model.train()
        return meter.read()

    def _terms(self, model: nn.Module, batch: Batch, uniforms_Bn: Tensor, drop: float, normalization: str) -> LossTerms:
        """The loss over the good images of a batch; without any it is 0, but still a function of the model."""
        device = self.accelerator.device
        views_BHWC = batch.views_BHWC.to(device, non_blocking=True)
        uniforms_Bn = uniforms_Bn.to(device, non_blocking=True)

        # What the teachers say, and what the student guesses: {teacher: {kind: (B, D) or (B, N, D)}}
        with float32_products(tf32=False):
            targets, seen = self.targets(batch, views_BHWC)
        guesses = guess(model, prepare(views_BHWC, self.spec), seen, batch.good_B)

        # Broken images do not count
        if 0 < batch.broken < len(batch.good_B):
            rows = batch.good_B.nonzero().flatten().to(device, non_blocking=True)
            guesses, targets, uniforms_Bn = _rows(guesses, rows), _rows(targets, rows), uniforms_Bn[rows]
        terms = distillation_loss(guesses, targets, uniforms_Bn, drop, normalization)
        return terms if batch.good_B.any() else dataclasses.replace(terms, loss=terms.loss * 0)


def guess(
    model: nn.Module, images_BCHW: Tensor, seen: dict[Grid, Tensor], good_B: Tensor
) -> dict[str, dict[str, Tensor]]:
    """The model's guesses; images that are not `good` stay out of the statistics of a model that keeps any."""
    kept: AbstractContextManager[None] = nullcontext()
    if not good_B.all() and normalizes_by_batch(model):
        images_BCHW = good_alone(images_BCHW, good_B)
        kept = nullcontext() if good_B.any() else statistics_kept(model)
    with kept:
        guesses: dict[str, dict[str, Tensor]] = model(images_BCHW, seen)
    return guesses


def check_batch(model: nn.Module, images: int) -> None:
    """ConfigError if a model normalises by its batch, and a process has a single image in one."""
    if images < 2 and normalizes_by_batch(model):
        raise ConfigError(
            "this student normalises by its batch (BatchNorm), and one image a process is none; raise --batch-size, or "
            "choose a student without it, such as a ViT or a ConvNeXt"
        )


def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Give all processes the main one's buffers, which checkpoints keep: averages over batches, if there are any."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def finite(loss: float, step: int) -> float:
    """The loss, or UnicCacheError if training has diverged."""
    if not math.isfinite(loss):
        raise UnicCacheError(
            f"the loss is {loss} at step {step}: training diverged. Lower --lr, lengthen --warmup, or use --precision "
            "bf16; the last checkpoint is intact and can be resumed"
        )
    return loss


def _rows(tokens: dict[str, dict[str, Tensor]], rows: Tensor) -> dict[str, dict[str, Tensor]]:
    """Some images' tokens."""
    return {name: {kind: values[rows] for kind, values in kinds.items()} for name, kinds in tokens.items()}
