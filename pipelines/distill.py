"""Stage two: one student learns from every teacher in the cache or, online, from the teachers themselves.

    views + stored codes -> student -> ladder -> loss against the decoded tokens -> step

A step is a pure function of its number and of the state before it: order, views, dropped teachers and dropped paths are
drawn from integers. A run that was stopped and resumed therefore equals one that never stopped.

Letters: B images, H and W pixels.
"""

import dataclasses
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from pipelines.command.caches import opened
from pipelines.command.device import device_words
from pipelines.command.environment import say_surroundings
from pipelines.command.failures import reason
from pipelines.command.progress import Progress, begins, say
from pipelines.command.run_folder import FREE_ON_RESUME, check_run
from pipelines.command.signals import StopRequest, stop_on_signal
from pipelines.extracting.specs import versions
from pipelines.training.learner import Learner, finite
from pipelines.training.online import open_live_set
from pipelines.training.processes import begin_tracking, make_accelerator, run_claimed
from pipelines.training.run_state import RunState
from pipelines.training.runlog import Clock, RunLog
from pipelines.training.targets import Cached, Source, Targets
from pipelines.training.training_set import Snapshot, TrainingSet, open_training_set
from unic_cache.ahead import thread_pool
from unic_cache.cache import Cache
from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError
from unic_cache.evaluate.curves import plot_losses
from unic_cache.files.local import LocalFolder
from unic_cache.stream.batches import Stream
from unic_cache.stream.order import Order
from unic_cache.student.backbone import EncoderSpec, build_encoder, encoder_spec
from unic_cache.student.checkpoint import load_checkpoint
from unic_cache.student.export import timm_line
from unic_cache.student.ladder import Ladder, Student
from unic_cache.student.run_files import CHECKPOINT, CONFIG, CURVE, ENCODER, LOG
from unic_cache.student.schedule import learning_rate, optimizer
from unic_cache.tf32 import float32_products


@dataclass(frozen=True)
class Trained:
    """The result of a run."""

    encoder: Path
    timm_line: str
    steps: int
    loss: float  # of the last logged steps
    licences: dict[str, str]  # teacher -> licence
    left_out: int  # images never used, since their records are broken or missing
    broken: int  # times an image was skipped, since its stored data is broken
    main_process: bool  # whether this process is the one that reports


def run(config: DistillConfig) -> Trained:
    """Train from the cache, or continue from OUT's checkpoint; return the exported encoder and how to load it."""
    out = Path(config.out)
    check_run(config, out)
    accelerator = make_accelerator(config, out)
    with run_claimed(out, accelerator), thread_pool(config.threads) as pool, stop_on_signal() as stop:
        snapshot = Snapshot.load(out) if check_run(config, out) else None
        begin_tracking(config, accelerator)
        spec = encoder_spec(config.student, config.img_size, config.patch_size, config.drop_path)
        tf32 = uses_tf32(config, accelerator)

        # Data: images, and where the teachers' tokens come from
        cache, data, source = open_source(config, snapshot, pool, accelerator)
        total = config.steps or max(1, round(config.epochs * len(data.train) / config.batch_size))
        announce(config, spec, data, total, accelerator)

        # Model: encoder, ladder and AdamW, as the checkpoint has them when resuming
        encoder = build_encoder(spec, config.seed, config.init, sizes_given(config))
        kinds = {teacher.name: teacher.kinds for teacher in data.teachers}
        ladder = Ladder(encoder.embed_dim, len(encoder.blocks), kinds, config.seed, config.ladder_widths)
        student = Student(encoder, ladder)
        adamw = optimizer(student, config.peak_lr(), config.weight_decay)
        start, header = load_checkpoint(out, student, adamw) if snapshot else (0, {})
        model, adamw = accelerator.prepare(student, adamw)
        restore(accelerator, header)

        # Training: every step from `start` on
        save_settings(config, out, data, accelerator)
        targets = Targets(config, cache, data.teachers, data.snapshot.views, source, accelerator.device)
        learner = Learner(model, spec, data.teachers, targets, config, accelerator)
        stream = open_stream(config, cache, data, pool, accelerator.device)
        state = RunState(out, student, adamw, accelerator, spec, describe(config, data, tf32), start)
        with float32_products(tf32):
            loss, broken = train(data, stream, learner, adamw, state, range(start, total), stop)
    if accelerator.is_main_process:
        draw_losses(out)
    licences = {teacher.name: str(teacher.spec["provenance"]["licence"]) for teacher in data.teachers}
    line, left_out = timm_line(spec, out / ENCODER), data.train.left_out + data.val.left_out
    return Trained(out / ENCODER, line, total, loss, licences, left_out, broken, accelerator.is_main_process)


def train(
    data: TrainingSet, stream: Stream, learner: Learner, adamw: Any, state: RunState, steps: range, stop: StopRequest
) -> tuple[float, int]:
    """Do `steps`; return the loss of the last logged ones, and how often an image was skipped as broken."""
    config, accelerator, total = learner.config, learner.accelerator, steps.stop
    batches = stream.batches(learner.batches(Order(data.train, data.snapshot.numbers, config.seed), steps))
    size = config.batch_size
    log, meter, clock = RunLog(state.out, accelerator, steps.start), learner.meter(), Clock(size)
    with Progress("distill", total * size, "images", steps.start * size, not accelerator.is_main_process) as bar:
        for step in steps:
            # Step: batch, loss, gradients, update
            with clock.waiting(), state.saved_on_error(step):
                batch = next(batches)
            rate = set_rate(adamw, config, step, total)
            terms = learner.training_terms(batch, step)
            accelerator.backward(terms.loss)
            adamw.step()
            adamw.zero_grad(set_to_none=True)
            meter.add(terms, float(batch.good_B.any()), batch.broken)
            done, last = step + 1, step + 1 == total

            # Log
            bar.advance(size)
            stopping = stop_agreed(accelerator, stop.made, done % config.log_every == 0)
            if done % config.log_every == 0 or last:
                values = meter.read()
                bar.note(f"loss {finite(values['loss'], done):.4f}")
                with state.saved_on_error(done):
                    log.write("train", done, {"lr": rate, **values, **clock.read()})

            # Validate
            if len(data.val) and (done % config.eval_every == 0 or last):
                with state.saved_on_error(done):
                    log.write("val", done, learner.validate(stream, data.val, data.snapshot.numbers[0]))

            # Save, stop
            if done % config.save_every == 0 or last or stopping:
                finite(terms.loss.item(), done)
                state.save(done)
            if stopping and not last:
                raise KeyboardInterrupt(f"stopped after step {done} of {total}; continue with --resume")
    if not steps:
        state.save(total)  # an earlier run may have stopped between its last checkpoint and its encoder
    log.close()
    return log.last_loss, meter.broken


def open_source(
    config: DistillConfig, snapshot: Snapshot | None, pool: ThreadPoolExecutor, accelerator: Accelerator
) -> tuple[Cache, TrainingSet, Source]:
    """The cache, the images to train on, and the source of tokens: the cache, or the teachers themselves."""
    if config.online:
        return open_live_set(config, pool, accelerator.device, (accelerator.process_index, accelerator.num_processes))
    cache = opened(config.cache)
    data = open_training_set(config, cache, pool, snapshot)
    return cache, data, Cached(data.teachers)


def open_stream(
    config: DistillConfig, cache: Cache, data: TrainingSet, pool: ThreadPoolExecutor, device: torch.device
) -> Stream:
    """The reader of batches; online it reads views alone, and a bad image never stops it."""
    return Stream(
        cache,
        () if config.online else data.teachers,
        data.snapshot.views,
        data.pixels,
        pool,
        check_pixels=config.pixel_tolerance == 0,
        pin=device.type == "cuda",
        skip_broken=config.skip_broken or config.online,
    )


def draw_losses(out: Path) -> None:
    """Draw OUT/loss.png; a failure is reported and does not fail the run."""
    try:
        plot_losses(out / LOG, out / CURVE)
    except Exception as error:
        say(f"{out / CURVE} was not drawn: {reason(error)}")


def announce(config: DistillConfig, spec: EncoderSpec, data: TrainingSet, total: int, accelerator: Accelerator) -> None:
    """Say what is about to be done, from the main process."""
    if not accelerator.is_main_process:
        return
    views, processes = data.snapshot.views, int(accelerator.num_processes)
    begins(
        "distill",
        f"{config.student} at {spec.img_size} px on {device_words(accelerator.device)}",
        f"{processes} process{'es' if processes > 1 else ''}, precision {config.precision}",
        f"{len(data.train):,} images x {len(data.snapshot.numbers)} views of {views.size} px ({views.recipe})",
        f"teachers {', '.join(teacher.name for teacher in data.teachers)}",
        f"{total:,} steps of {config.batch_size} images ({total * config.batch_size / len(data.train):,.4g} epochs)",
        f"into {config.out}",
    )
    say_surroundings()


def sizes_given(config: DistillConfig) -> tuple[str, ...]:
    """Which weights of --init may be resampled: those whose size the user gave."""
    positions = config.img_size is not None or config.patch_size is not None
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


def stop_agreed(accelerator: Accelerator, asked: bool, meeting: bool) -> bool:
    """Whether to stop now. Several processes stop together, at a meeting: one alone would leave the others waiting."""
    if accelerator.num_processes == 1:
        return asked
    if not meeting:
        return False
    flag = torch.tensor([float(asked)], device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item())


def set_rate(adamw: Any, config: DistillConfig, step: int, total: int) -> float:
    """Set the learning rate of step `step` in every parameter group, and return it."""
    rate = learning_rate(step, total, round(config.warmup * total), config.peak_lr(), config.min_lr)
    for group in adamw.param_groups:
        group["lr"] = rate
    return rate


def restore(accelerator: Accelerator, header: Mapping[str, Any]) -> None:
    """Restore the fp16 scaler's state. ConfigError if the run began with another number of processes."""
    before = header.get("processes", accelerator.num_processes)
    if before != accelerator.num_processes:
        raise ConfigError(
            f"the run began with {before} processes, not {accelerator.num_processes}; resume with as many, since each "
            "process draws for itself"
        )
    if accelerator.scaler is not None and header.get("scaler") is not None:
        accelerator.scaler.load_state_dict(header["scaler"])


def save_settings(config: DistillConfig, out: Path, data: TrainingSet, accelerator: Accelerator) -> None:
    """Write OUT's config and snapshot when the run begins."""
    if accelerator.is_main_process and not (out / CHECKPOINT).exists():
        settings = config.to_json()
        if data.difference is not None:
            settings["pixel_difference"] = dataclasses.asdict(data.difference)
        LocalFolder(out).replace(CONFIG, (json.dumps(settings, sort_keys=True, indent=1) + "\n").encode())
        data.snapshot.save(out)


def describe(config: DistillConfig, data: TrainingSet, tf32: bool) -> dict[str, Any]:
    """The student's provenance, for the exported encoder."""
    return {
        "method": "UNIC, arXiv 2408.05088",
        "teachers": {
            teacher.name: {
                "weights_sha256": teacher.spec["teacher"]["weights_sha256"],
                "codec": teacher.spec["codec"],
                **teacher.spec["provenance"],
            }
            for teacher in data.teachers
        },
        "views": {**dataclasses.asdict(data.snapshot.views), "numbers": list(data.snapshot.numbers)},
        "images": len(data.train),
        "config": {key: value for key, value in config.to_json().items() if key not in FREE_ON_RESUME},
        "float32_products": "tf32" if tf32 else "float32",
        "versions": versions(),
    }
