"""The student as a run begins: at random, from weights, from another run, or from its own checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipelines.command.progress import say
from pipelines.extracting.students import init_origin, started_encoder
from pipelines.training.first_stage import FirstStage, open_first_stage, take_over
from pipelines.training.run_state import ORIGINS
from unic_cache.cache import CachedTeacher
from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError
from unic_cache.student.backbone import EncoderSpec
from unic_cache.student.checkpoint import load_checkpoint
from unic_cache.student.projectors import Student, build_student
from unic_cache.student.schedule import optimizer
from unic_cache.student.sharding import shard, take_state


@dataclass(frozen=True)
class Started:
    """Everything that training changes."""

    student: Student
    average: AveragedModel | None  # with --ema
    adamw: torch.optim.AdamW
    steps: int  # done before
    header: dict[str, Any]  # of the checkpoint; empty without one
    origin: dict[str, Any]  # what the student's provenance says of --from and --init, under "from" and "init"


def start_student(
    config: DistillConfig, spec: EncoderSpec, teachers: Sequence[CachedTeacher], resumed: Path | None, tell: bool
) -> Started:
    """The student with its projectors, moving average and AdamW, on the CPU. `tell`: whether this process says so.

    A run that is resumed, from the folder `resumed`, reads neither --init nor --from again.
    """
    resuming = resumed is not None
    first = None if resuming else open_first_stage(config, spec)
    init = None if resuming else config.init if first is None else first.encoder
    encoder = started_encoder(spec, config.seed, init, sizes_given(config, first))
    student = build_student(encoder, spec, {teacher.name: teacher.kinds for teacher in teachers}, config)
    if first is not None:
        said = take_over(student, first, teachers, config.standardize)
        if tell:
            say(f"starts from {first.folder}, {first.provenance['steps']:,} steps: its encoder is taken over")
            for name, what in said.items():
                say(f"{name}: its projectors {what}")
    average = moving_average(student, config.ema, resuming)
    adamw = optimizer(student, config.peak_lr(), config.weight_decay)
    steps, header = 0, dict[str, Any]()
    if resumed is not None:
        steps, header = load_checkpoint(resumed, student, adamw, average and average.module)
    origin = {key: header[key] for key in ORIGINS if key in header} if resuming else first_origin(config, first)
    if config.compile:
        student.compile_encoder()
    return Started(student, average, adamw, steps, header, origin)


def prepared(accelerator: Accelerator, begun: Started, config: DistillConfig) -> tuple[nn.Module, Any]:
    """The student and AdamW on the device, as accelerate wraps them; with --shard-student in parts."""
    if not config.shard_student:
        wrapped: tuple[nn.Module, Any] = accelerator.prepare(begun.student, begun.adamw)
        return wrapped
    state = {name: dict(begun.adamw.state.get(value, {})) for name, value in begun.student.named_parameters()}
    model: nn.Module = accelerator.prepare_model(begun.student, evaluation_mode=True)  # wrapped for its precision alone
    shard(model, accelerator.device, int(accelerator.num_processes))
    adamw = optimizer(model, config.peak_lr(), config.weight_decay)
    take_state(adamw, model, state)
    return model, accelerator.prepare_optimizer(adamw)


def first_origin(config: DistillConfig, first: FirstStage | None) -> dict[str, Any]:
    """Where the first weights of a run that begins are from, for the student's provenance."""
    if first is not None:
        return {"from": dict(first.provenance)}
    known = {} if config.init is None else init_origin(config.init)
    return {"init": known} if known else {}


def moving_average(student: Student, decay: float | None, begun: bool) -> AveragedModel | None:
    """A copy of the student that will follow it: w' = decay w' + (1 - decay) w after each step; None without a decay.

    It begins as the weights after the first step, unless the run has `begun` already. Buffers are copied.
    """
    if decay is None:
        return None
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
    average.n_averaged.fill_(int(begun))  # stays on the CPU: asking whether it is 0 must not wait for the device
    average.requires_grad_(False)
    average.eval()
    return average


def sizes_given(config: DistillConfig, first: FirstStage | None) -> tuple[str, ...]:
    """Which weights of --init and --from may be resampled: those whose size the user gave.

    The patch size of the run that --from names is known: to repeat it asks for nothing.
    """
    patch_size = config.patch_size if first is None or config.patch_size != first.spec.patch_size else None
    positions = config.img_size is not None or patch_size is not None or "@" in config.student
    return ("positions",) * positions + ("patches",) * bool(config.patch_size)


def uses_tf32(config: DistillConfig, accelerator: Accelerator) -> bool:
    """Whether the student's float32 products run in TF32: on CUDA, as in the authors' runs, unless --no-tf32."""
    cuda = accelerator.device.type == "cuda"
    if config.tf32 and not cuda:
        raise ConfigError(f"--tf32 needs a CUDA device, but this run is on {accelerator.device.type}; leave it out")
    used = cuda and config.tf32 is not False
    if used and accelerator.is_main_process:
        say("float32 products run in TF32, as in the authors' runs; --no-tf32 for full precision")
    return used
