"""A run that ended, or was stopped, opened to ask what its student finds hard.

Letters: B images, n teachers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipelines.training.targets import Cached, Targets
from pipelines.training.training_set import Snapshot
from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import DistillConfig
from unic_cache.errors import CacheError, ConfigError
from unic_cache.stream.batches import Batch
from unic_cache.stream.rows import Rows, usable_rows
from unic_cache.student.backbone import EncoderSpec, build_encoder, encoder_spec, prepare
from unic_cache.student.checkpoint import load_checkpoint
from unic_cache.student.ladder import Ladder, Student
from unic_cache.student.loss import distillation_loss
from unic_cache.student.run_files import CHECKPOINT
from unic_cache.student.schedule import optimizer


@dataclass(frozen=True)
class FinishedRun:
    """The student with its ladder, in evaluation mode, and what it learned from."""

    student: Student
    spec: EncoderSpec
    snapshot: Snapshot
    teachers: Sequence[CachedTeacher]
    targets: Targets
    steps: int

    @property
    def held_out(self) -> bool:
        """Whether `rows` are held out of training."""
        return bool(self.snapshot.val)

    def rows(self, cache: Cache) -> Rows:
        """The held-out images, or without any those trained on. CacheError if they are not as the run read them."""
        names = self.snapshot.val or self.snapshot.train
        rows, records = usable_rows(cache, self.teachers, self.snapshot.views, self.snapshot.numbers[:1], names, True)
        changed = [name for name, checksum in records.items() if self.snapshot.records.get(name) != checksum]
        if changed:
            raise CacheError(
                f"{cache.location.url} is not the cache that the run was trained from: {changed[0]} differs; give that "
                "cache, or another --student"
            )
        return rows

    @torch.inference_mode()
    def losses(self, batch: Batch) -> Tensor:
        """(n, B): each teacher's loss on each image, as validation takes it: no path and no teacher dropped."""
        targets, seen = self.targets(batch, batch.views_BHWC)
        guesses = self.student(prepare(batch.views_BHWC, self.spec), seen)
        return distillation_loss(guesses, targets, torch.zeros(len(batch.views_BHWC), len(self.teachers)), 0.0).losses


def open_finished(folder: Path, settings: DistillConfig, cache: Cache) -> FinishedRun:
    """The run in a folder, on the CPU. ConfigError without a checkpoint; CacheError if the cache lacks a teacher."""
    if settings.online:
        raise ConfigError(
            f"{folder}: the run had its teachers --online and read no cache; name one that read this cache"
        )
    if not (folder / CHECKPOINT).is_file():
        raise ConfigError(f"{folder} has no {CHECKPOINT}, which holds the projectors that the loss needs; restore it")
    snapshot = Snapshot.load(folder)
    teachers = tuple(cache.teacher(name) for name in snapshot.teachers)
    spec = encoder_spec(settings.student, settings.img_size, settings.patch_size, settings.drop_path)
    encoder = build_encoder(spec, settings.seed)
    kinds = {teacher.name: teacher.kinds for teacher in teachers}
    student = Student(
        encoder, Ladder(encoder.embed_dim, len(encoder.blocks), kinds, settings.seed, settings.ladder_widths)
    )
    steps, _ = load_checkpoint(folder, student, optimizer(student, settings.peak_lr(), settings.weight_decay))
    targets = Targets(settings, cache, teachers, snapshot.views, Cached(teachers), torch.device("cpu"))
    return FinishedRun(student.eval(), spec, snapshot, teachers, targets, steps)
