"""What a training step and the disk cost on this machine, by a student with random weights and a temporary file.

Letters: B images, H and W pixels, N patch tokens per grid that the loss sees.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from pipelines.extracting.students import named_spec
from pipelines.planning.codec_costs import wait_for
from pipelines.planning.forecast import StudentCost
from unic_cache.config import DistillConfig, PlanConfig
from unic_cache.files.local import LocalFolder
from unic_cache.files.location import Location
from unic_cache.files.open_file import LocalFile
from unic_cache.student.backbone import build_encoder, prepare
from unic_cache.student.loss import distillation_loss
from unic_cache.student.projectors import build_student
from unic_cache.student.schedule import optimizer
from unic_cache.teachers.model import Teacher
from unic_cache.token_kinds import Kinds

FIRST_BATCH, LAST_BATCH = 4, 256  # images
LONG_ENOUGH = 0.5  # seconds per step: a larger batch would hardly be faster per image
STEPS = 3
AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
FILE_BYTES = 2**27
PIECE_BYTES = 2**22


def student_cost(config: PlanConfig, teachers: Sequence[Teacher], tokens: int | None) -> StudentCost:
    """Cost of a step of forward, loss, backward and AdamW on random views and targets, with distill's own projectors.

    The batch doubles from 4 images until a step takes half a second, a batch has 256, or memory is full.
    """
    device, short = teachers[0].device, AUTOCAST[config.precision]
    spec = named_spec(config.student, config.img_size, config.patch_size, drop_path=0.0)
    encoder = build_encoder(spec, seed=0)
    targets = {teacher.spec.name: teacher.spec.kinds for teacher in teachers}
    student = build_student(encoder, spec, targets, DistillConfig()).to(device)
    adamw = optimizer(student, peak=1e-6, weight_decay=0.03)

    def step(batch: int) -> float:
        views_BHWC = torch.randint(
            256, (batch, config.kind.size, config.kind.size, 3), dtype=torch.uint8, device=device
        )
        kept, wanted = random_targets(targets, tokens, batch, device)
        uniforms_Bn = torch.rand(batch, len(targets), device=device)
        wait_for(device)
        began = time.perf_counter()
        with torch.autocast(device.type, short, enabled=short is not None):
            guesses = student(prepare(views_BHWC, spec), kept)
            loss = distillation_loss(guesses, wanted, uniforms_Bn, 0.5).loss
        torch.autograd.backward(loss)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        wait_for(device)
        return time.perf_counter() - began

    batch, seconds = largest_batch(step)
    return StudentCost(tokens, batch, median([seconds, *(step(batch) for _ in range(STEPS - 1))]) / batch)


def largest_batch(step: Callable[[int], float]) -> tuple[int, float]:
    """(batch to measure with, seconds of a warm step of it)."""
    batch, seconds = 0, 0.0
    following = FIRST_BATCH
    while following <= LAST_BATCH and seconds < LONG_ENOUGH:
        try:
            step(following)
            batch, seconds = following, step(following)
        except torch.OutOfMemoryError:
            if not batch:
                raise
            break
        following *= 2
    return batch, seconds


def random_targets(
    targets: dict[str, Kinds], tokens: int | None, batch: int, device: torch.device
) -> tuple[dict[tuple[int, int], Tensor], dict[str, dict[str, Tensor]]]:
    """The positions (B, N) of each grid that the loss sees only a part of, and tokens to be guessed."""
    grids = {given.grid for kinds in targets.values() for given in kinds.values() if given.grid is not None}
    kept = {
        (h, w): torch.stack([torch.randperm(h * w, device=device)[:tokens] for _ in range(batch)])
        for h, w in grids
        if tokens is not None and tokens < h * w
    }
    wanted: dict[str, dict[str, Tensor]] = {name: {} for name in targets}
    for name, kinds in targets.items():
        for kind, given in kinds.items():
            count = () if given.grid is None else (given.grid[0] * given.grid[1],)
            if given.grid in kept:
                count = (kept[given.grid].shape[1],)
            wanted[name][kind] = torch.randn(batch, *count, given.channels, device=device)
    return kept, wanted


def disk(location: Location) -> tuple[int | None, float | None]:
    """(free bytes, bytes per second read past the page cache) where a cache will be; None if unknown.

    To measure the rate, a file of 128 MiB is written there, read and removed.
    """
    if not isinstance(location, LocalFolder):
        return None, None
    folder = existing(location.path.absolute())
    free = shutil.disk_usage(folder).free
    if free < 2 * FILE_BYTES or not os.access(folder, os.W_OK):
        return free, None
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".tmp-plan-") as file:
        for _ in range(FILE_BYTES // PIECE_BYTES):
            file.write(os.urandom(PIECE_BYTES))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        opened, room = LocalFile(Path(file.name), past_cache=True), memoryview(bytearray(PIECE_BYTES))
        began = time.perf_counter()
        for offset in range(0, FILE_BYTES, PIECE_BYTES):
            opened.read_into(offset, [room])
        return free, FILE_BYTES / (time.perf_counter() - began)


def existing(path: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
