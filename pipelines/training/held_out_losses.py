"""The loss of a finished run's student on images and views of any cache of the same teachers.

It compares students that learned from different caches, or online, by one yardstick: the stored tokens of one cache,
such as an `f16` cache of all tokens. Each run standardized its targets with its own cache's statistics; its guesses are
therefore restated in those of the common cache, per channel, whatever the run's own --standardize.

Letters: B views, n teachers, P channels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipelines.command.caches import opened
from pipelines.command.run_folder import run_settings
from pipelines.command.tars import given_shards
from pipelines.training.finished_run import check_finished, check_records, load_student
from pipelines.training.online import FOLDER
from pipelines.training.targets import Cached, Targets
from pipelines.training.training_set import Snapshot, teachers_of
from unic_cache.ahead import thread_pool
from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import DistillConfig
from unic_cache.errors import CacheError
from unic_cache.store.standardize import between
from unic_cache.stream.address import shown
from unic_cache.stream.batches import Batch, Stream
from unic_cache.stream.matched import matched
from unic_cache.stream.pixels import KeptPixels, Pixels, ShardPixels
from unic_cache.stream.rows import usable_rows
from unic_cache.student.backbone import EncoderSpec, prepare
from unic_cache.student.export import load_encoder
from unic_cache.student.ladder import Tokens
from unic_cache.student.loss import distillation_loss
from unic_cache.student.projectors import Student

Maps = Mapping[tuple[str, str], tuple[Tensor, Tensor]]  # (teacher, kind) -> matrix (P, P) and offset (P,)


@dataclass(frozen=True)
class HeldOutLosses:
    """Each teacher's loss on each view: mean over kinds and tokens, nothing dropped.

    It is UNIC's, whatever the run's --loss, so that runs can be compared.
    """

    teachers: tuple[str, ...]
    shown: tuple[tuple[int, int], ...]  # (sample key, view number) of each column
    losses_nB: Tensor  # float32, on the CPU


def held_out_losses(
    run: str | Path,
    cache: str,
    shards: str | None,
    numbers: Sequence[int],
    own_cache: str | None = None,
    device: str | torch.device = "cpu",
    threads: int = 0,
    batch: int = 64,
) -> HeldOutLosses:
    """Losses of the run's student on every good image of the tars `shards` under views `numbers` of `cache`.

    The mean is over the token kinds that the run learned. Without `shards`, it is on all images of a cache that keeps
    its views. Views have the run's recipe, size and seed. `own_cache` is where the cache that the run was trained from
    is now; by default, where it was. ConfigError without a checkpoint, or before the last step; CacheError if the
    caches hold features of different networks, or lack any of this.
    """
    folder, on = Path(run), torch.device(device)
    settings, snapshot = run_settings(folder), Snapshot.load(folder)
    whole, own = opened(cache), opened(own_cache or (str(folder / FOLDER) if settings.online else settings.cache))
    teachers = teachers_of(whole, snapshot.teachers, settings.kinds)
    check_trained(settings, snapshot, own, teachers)
    student, spec, steps = load_student(folder, settings, teachers)
    check_finished(folder, settings, steps, load_encoder(folder)[2])
    maps = restatements(settings, own, teachers, on)
    paths, entries = given_shards(shards, whole.pixels is not None)
    tars = matched(whole, zip(paths, entries, strict=True))
    names = [entry.name for entry in entries] or list(whole.shards())
    rows, _ = usable_rows(whole, teachers, snapshot.views, numbers, names)
    every = [rows.address(place, number) for number in numbers for place in range(len(rows))]
    if not every:
        raise CacheError(f"{cache}: no image of {len(names)} tars under {len(numbers)} views; name others")
    asked = dataclasses.replace(settings, tokens=None, standardize="channel")
    targets = Targets(asked, whole, teachers, snapshot.views, Cached(teachers), on)
    student = student.to(on)
    with thread_pool(threads) as pool:
        views = snapshot.views
        pixels = Pixels(KeptPixels(views, whole, pool), ShardPixels(views, tars, pool))
        stream = Stream(whole, teachers, views, pixels, pool, check_pixels=settings.pixel_tolerance == 0)
        batches = stream.batches(iter([every[start : start + batch] for start in range(0, len(every), batch)]))
        found = [batch_losses(student, spec, targets, maps, one, on).cpu() for one in batches]
    return HeldOutLosses(snapshot.teachers, tuple(shown(whole, every)), torch.cat(found, dim=1))


@torch.inference_mode()
def batch_losses(
    student: Student, spec: EncoderSpec, targets: Targets, maps: Maps, batch: Batch, device: torch.device
) -> Tensor:
    """(n, B): the losses of a batch's guesses, restated by `maps`."""
    views_BHWC = batch.views_BHWC.to(device)
    wanted, seen = targets(batch, views_BHWC)
    guesses: dict[str, Tokens] = student(prepare(views_BHWC, spec), seen)
    for (name, kind), (matrix, offset) in maps.items():
        guesses[name][kind] = guesses[name][kind] @ matrix + offset
    return distillation_loss(guesses, wanted, torch.zeros(len(views_BHWC), len(guesses), device=device), 0.0).losses


def restatements(settings: DistillConfig, own: Cache, teachers: Sequence[CachedTeacher], device: torch.device) -> Maps:
    """The map of each teacher and kind from the run's standardization to that of `teachers`, if they differ."""
    return {
        (teacher.name, kind): (found[0].to(device), found[1].to(device))
        for teacher in teachers
        for kind in teacher.kinds
        if (found := between(own.teacher(teacher.name).calibration, teacher.calibration, kind, settings.standardize))
    }


def check_trained(settings: DistillConfig, snapshot: Snapshot, own: Cache, teachers: Sequence[CachedTeacher]) -> None:
    """CacheError unless the run learned from `own`, and from the networks whose features `teachers` are."""
    learned = [own.teacher(teacher.name) for teacher in teachers]
    for before, teacher in zip(learned, teachers, strict=True):
        ours, theirs = (one.spec["teacher"]["weights_sha256"] for one in (before, teacher))
        if ours != theirs:
            raise CacheError(
                f"{teacher.member.location.url}: {teacher.name} has other weights than in {own.location.url}, from "
                "which the run learned; give a cache of the same teachers"
            )
    if not settings.online:
        lacked = settings.allow_missing
        _, records = usable_rows(
            own, learned, snapshot.views, snapshot.numbers, snapshot.train, settings.skip_broken, lacked,
            snapshot.records if lacked else None, snapshot.records,
        )  # fmt: skip
        check_records(snapshot, own, records)
