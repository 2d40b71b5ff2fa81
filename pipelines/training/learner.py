"""One step's arithmetic: stored codes to targets, views to guesses, both to the loss; in training and in validation.

Letters: B images, H and W pixels, n teachers.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipelines.command.progress import say
from pipelines.training.batch_parts import BatchParts, batch_parts
from pipelines.training.gradients import Gradients, sums_over_processes
from pipelines.training.runlog import Meter
from pipelines.training.targets import Targets
from unic_cache.cache import CachedTeacher
from unic_cache.config import DistillConfig
from unic_cache.draws import Purpose, words
from unic_cache.errors import ConfigError
from unic_cache.stream.address import Address
from unic_cache.stream.batches import Batch, Stream
from unic_cache.stream.order import Order
from unic_cache.stream.rows import Rows
from unic_cache.student.backbone import EncoderSpec, prepare
from unic_cache.student.batch_statistics import (
    good_alone,
    normalizes_by_batch,
    statistics_kept,
    statistics_restored_on_error,
)
from unic_cache.student.drop_path import Places
from unic_cache.student.loss import LossTerms, distillation_loss, drop_uniforms, joined
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
    average: nn.Module | None = None  # the moving average of the model, if the run keeps one: it is what is validated

    @cached_property
    def layout(self) -> BatchParts:
        """Where this process's parts are in a batch."""
        return batch_parts(self.config, self.accelerator.num_processes, self.accelerator.process_index)

    @property
    def images(self) -> int:
        """Images of one forward pass: a process's share of a batch, or a part of it."""
        return self.layout.images

    @property
    def gradients(self) -> Gradients:
        """The gradients of a batch, part by part."""
        return Gradients(self.accelerator, self.model, self.layout, self.config.clip_grad)

    @cached_property
    def places(self) -> Places:
        """Tells the student's stochastic depth which images of the batch it sees."""
        places: Places = self.accelerator.unwrap_model(self.model).places
        return places

    def meter(self, training: bool = False) -> Meter:
        """An empty meter for this learner's terms."""
        kinds = {teacher.name: list(teacher.kinds) for teacher in self.teachers}
        return Meter(self.accelerator, kinds, training and self.config.clip_grad is not None)

    def batches(self, order: Order, steps: range) -> Iterator[list[Address]]:
        """This process's part of each step's batch, or its parts, in order."""
        for step in steps:
            for part in range(self.config.accumulate):
                first = step * self.config.batch_size + self.layout.first(part)
                yield order.samples(first, first + self.images)

    def training_terms(self, batch: Batch, step: int, part: int = 0) -> LossTerms:
        """The loss of a training step's part, with the step's own draws: dropped paths and dropped teachers.

        The draws of an image are a function of seed, step and its place in the batch alone.
        """
        config, first, images = self.config, self.layout.first(part), len(batch.views_BHWC)
        torch.manual_seed(int(words(Purpose.TORCH, config.seed, step, 0, 1)[0] >> 1))
        self.places.at(first, images, config.batch_size, self.accelerator.device)
        uniforms_Bn = drop_uniforms(config.seed, step, config.batch_size, len(self.teachers))[first : first + images]
        counting_B = batch.good_B if batch.good_B.any() else torch.ones_like(batch.good_B)
        groups = self.layout.group_sizes(part, counting_B)
        return self._terms(self.model, batch, uniforms_Bn, config.drop_teacher, config.balancing, groups)

    @torch.no_grad()
    def validate(self, stream: Stream, rows: Rows, number: int) -> dict[str, Any]:
        """The loss on held-out rows under view `number`, no teacher dropped; the work is split over the processes.

        Each process runs the model by itself: the data-parallel wrapper would meet the others at every batch, to share
        buffers, and they may have fewer.
        """
        model = self.accelerator.unwrap_model(self.model) if self.average is None else self.average
        share_buffers(self.accelerator, model)
        model.eval()
        places = range(0, len(rows), self.images)
        every = [[rows.address(at, number) for at in range(i, min(i + self.images, len(rows)))] for i in places]
        mine = every[self.accelerator.process_index :: self.accelerator.num_processes]
        meter, own = self.meter(), len(mine)
        if self.config.shard_student:  # processes meet in every pass: those with fewer batches repeat one
            mine += every[:1] * (-(-len(every) // int(self.accelerator.num_processes)) - own)
        for place, batch in enumerate(stream.batches(iter(mine))):
            images = len(batch.views_BHWC)
            with self.accelerator.autocast():
                terms = self._terms(model, batch, torch.zeros(images, len(self.teachers)), 0.0, "image")
            if place < own:
                meter.add(terms, images - batch.broken, batch.broken)
        model.train(self.average is None)
        return meter.read()

    def _terms(
        self,
        model: nn.Module,
        batch: Batch,
        uniforms_Bn: Tensor,
        drop: float,
        balancing: str,
        groups: Sequence[int] | None = None,
    ) -> LossTerms:
        """The loss over the good images of a batch; without any it is 0, but still a function of the model."""
        device = self.accelerator.device
        views_BHWC = batch.views_BHWC.to(device, non_blocking=True)
        uniforms_Bn = uniforms_Bn.to(device, non_blocking=True)
        present_Bn = None if batch.present_Bn is None else batch.present_Bn.to(device, non_blocking=True)

        # What the teachers say, and what the student guesses: {teacher: {kind: (B, D) or (B, N, D)}}
        with float32_products(tf32=False), torch.autocast(device.type, enabled=False):
            targets, seen = self.targets(batch, views_BHWC)
        guesses = guess(model, prepare(views_BHWC, self.spec), seen, batch.good_B)

        # Broken images do not count
        if 0 < batch.broken < len(batch.good_B):
            rows = batch.good_B.nonzero().flatten().to(device, non_blocking=True)
            guesses, targets, uniforms_Bn = _rows(guesses, rows), _rows(targets, rows), uniforms_Bn[rows]
            present_Bn = None if present_Bn is None else present_Bn[rows]
        kind = balancing, self.config.loss
        terms = distillation_loss(guesses, targets, uniforms_Bn, drop, *kind, present_Bn, groups)
        if batch.good_B.any():
            return terms
        return dataclasses.replace(terms, loss=terms.loss * 0, totals=terms.totals * 0, counts=terms.counts * 0)


def learn(following: Callable[[], Batch], learner: Learner, meter: Meter, step: int) -> LossTerms:
    """The gradient of a step, over all processes and parts of its batch, clipped; the batch's terms, and its loss.

    `following` gives the next part. The meter counts them by the share of the batch's images that are this process's.
    """
    gradients = learner.gradients
    parts: list[LossTerms] = []
    good: list[LossTerms] = []
    broken = images = 0
    with statistics_restored_on_error(learner.model):
        for part in range(learner.config.accumulate):
            batch = following()
            with gradients.alone(part):
                parts.append(learner.training_terms(batch, step, part))
                good += parts[-1:] if batch.good_B.any() else []
                broken, images = broken + batch.broken, images + len(batch.good_B) - batch.broken
                last = part + 1 == learner.config.accumulate
                sums = sums_over_processes(learner.accelerator, joined(parts), images) if last else None
                gradients.add(parts, sums)
        norm = gradients.clipped()
    assert sums is not None  # there is a last part
    terms = dataclasses.replace(joined(good or parts), loss=sums.loss)
    meter.add(terms, images / sums.images.clamp(min=1), broken, norm)
    return terms


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


def check_batch(learner: Learner) -> None:
    """Say that a model which normalises by its batch sees only parts of it. ConfigError if that is a single image."""
    if not normalizes_by_batch(learner.model):
        return
    images, batch = learner.images, learner.config.batch_size
    if images < 2:
        raise ConfigError(
            "this student normalises by its batch (BatchNorm), and one image a process is none; raise --batch-size, or "
            "choose a student without it, such as a ViT or a ConvNeXt"
        )
    if images < batch and learner.accelerator.is_main_process:
        say(
            f"this student normalises by its batch (BatchNorm), here {images} of {batch} images at once: it depends on "
            "the number of processes and on --accumulate"
        )


def share_buffers(accelerator: Accelerator, model: nn.Module) -> None:
    """Give all processes the main one's buffers, which checkpoints keep: averages over batches, if there are any."""
    if accelerator.num_processes > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _rows(tokens: dict[str, dict[str, Tensor]], rows: Tensor) -> dict[str, dict[str, Tensor]]:
    """Some images' tokens."""
    return {name: {kind: values[rows] for kind, values in kinds.items()} for name, kinds in tokens.items()}
