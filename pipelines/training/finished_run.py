"""A run that ended, or was stopped, opened to ask what its student finds hard.

Letters: B images, n teachers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.extracting.students import student_spec
from pipelines.training.targets import Cached, Targets
from pipelines.training.training_set import Snapshot, teachers_of
from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import DistillConfig
from unic_cache.errors import CacheError, ConfigError
from unic_cache.stream.batches import Batch
from unic_cache.stream.rows import Rows, usable_rows
from unic_cache.student.backbone import EncoderSpec, build_encoder, prepare
from unic_cache.student.checkpoint import trained_weights
from unic_cache.student.loss import distillation_loss
from unic_cache.student.projectors import Student, build_student
from unic_cache.student.run_files import CHECKPOINT


@dataclass(frozen=True)
class FinishedRun:
    """The student with its ladder, in evaluation mode, and what it learned from."""

    student: Student
    spec: EncoderSpec
    snapshot: Snapshot
    teachers: Sequence[CachedTeacher]
    targets: Targets
    steps: int
    loss: str  # of a token, by name

    @property
    def held_out(self) -> bool:
        """Whether `rows` are held out of training."""
        return bool(self.snapshot.val)

    def rows(self, cache: Cache) -> Rows:
        """The held-out images, or without any those trained on, without those that a teacher lacked.

        CacheError if they are not as the run read them.
        """
        snapshot, names = self.snapshot, self.snapshot.val or self.snapshot.train
        first, known = snapshot.numbers[:1], snapshot.records
        rows, records = usable_rows(cache, self.teachers, snapshot.views, first, names, True, known=known)
        check_records(self.snapshot, cache, records)
        return rows

    @torch.inference_mode()
    def losses(self, batch: Batch) -> Tensor:
        """(n, B): each teacher's loss on each image, as validation takes it: no path and no teacher dropped."""
        targets, seen = self.targets(batch, batch.views_BHWC)
        guesses = self.student(prepare(batch.views_BHWC, self.spec), seen)
        uniforms_Bn = torch.zeros(len(batch.views_BHWC), len(self.teachers))
        return distillation_loss(guesses, targets, uniforms_Bn, 0.0, loss=self.loss).losses


def open_finished(folder: Path, settings: DistillConfig, cache: Cache) -> FinishedRun:
    """The run in a folder, on the CPU. ConfigError without a checkpoint; CacheError if the cache lacks a teacher."""
    if settings.online:
        raise ConfigError(
            f"{folder}: the run had its teachers --online and read no cache; name one that read this cache"
        )
    snapshot = Snapshot.load(folder)
    teachers = teachers_of(cache, snapshot.teachers, settings.kinds)
    student, spec, steps = load_student(folder, settings, teachers)
    targets = Targets(settings, cache, teachers, snapshot.views, Cached(teachers), torch.device("cpu"))
    return FinishedRun(student, spec, snapshot, teachers, targets, steps, settings.loss)


def check_finished(folder: Path, settings: DistillConfig, steps: int, provenance: Mapping[str, Any]) -> None:
    """ConfigError unless the run has done all its steps; `provenance` is that of its encoder."""
    total = settings.total_steps(provenance["images"])
    if not steps == provenance["steps"] == total:
        raise ConfigError(f"{folder} has done {steps} of {total} steps; finish it with --resume first")


def load_student(
    folder: Path, settings: DistillConfig, teachers: Sequence[CachedTeacher]
) -> tuple[Student, EncoderSpec, int]:
    """(encoder with projectors, in evaluation mode; its spec; steps done), from the run's last checkpoint.

    It is what the run exported: the moving average, if it kept one. ConfigError if the folder has none, or one that
    does not fit the settings and the teachers.
    """
    steps, weights = trained_weights(folder)
    spec = student_spec(settings, folder)
    kinds = {teacher.name: teacher.kinds for teacher in teachers}
    student = build_student(build_encoder(spec, settings.seed), spec, kinds, settings)
    try:
        student.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(f"{folder / CHECKPOINT}: from another student or other teachers: {error!s:.300}") from error
    return student.eval(), spec, steps


def check_records(snapshot: Snapshot, cache: Cache, records: Mapping[str, int]) -> None:
    """CacheError unless the cache's commit records are those that the run began with."""
    changed = [name for name, checksum in records.items() if snapshot.records.get(name) != checksum]
    if changed:
        raise CacheError(
            f"{cache.location.url} is not the cache that the run was trained from: {changed[0]} differs; give that "
            "cache, or another run"
        )
