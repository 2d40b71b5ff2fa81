"""Stage two: one student learns from all that the cache keeps, or, online, from the teachers themselves.

    views + kept codes -> student -> ladder -> loss against the decoded tokens -> step

A step is a pure function of its number and of the state before it: order, views, dropped teachers and dropped paths are
drawn from integers. So a run that was stopped goes on as if it never had been.

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
from pipelines.command.failures import reason
from pipelines.command.progress import Progress, begins, say
from pipelines.command.run_folder import FREE_ON_RESUME, check_run
from pipelines.command.signals import stop_on_signal
from pipelines.command.surroundings import say_surroundings
from pipelines.extracting.specs import versions
from pipelines.training.learner import Learner, finite, target_spec
from pipelines.training.online import open_live_set
from pipelines.training.processes import begin_tracking, make_accelerator, run_claimed
from pipelines.training.run_state import RunState
from pipelines.training.runlog import Clock, RunLog
from pipelines.training.targets import Cached, Source, Targets
from pipelines.training.training_set import Snapshot, TrainingSet, open_training_set
from unic_cache.ahead import thread_pool
from unic_cache.arithmetic import float32_products
from unic_cache.cache import Cache
from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError
from unic_cache.evaluate.report import plot_losses
from unic_cache.files.local import LocalFolder
from unic_cache.stream.batches import Stream
from unic_cache.stream.order import Order
from unic_cache.student.backbone import EncoderSpec, build_encoder, encoder_spec
from unic_cache.student.checkpoint import load_checkpoint
from unic_cache.student.export import timm_line
from unic_cache.student.ladder import Ladder, Student
from unic_cache.student.run_files import CHECKPOINT, CONFIG, CURVE, ENCODER, LOG
from unic_cache.student.schedule import learning_rate, optimizer


@dataclass(frozen=True)
class Trained:
    """What a run made."""

    encoder: Path
    timm_line: str
    steps: int
    loss: float  # of the last logged steps
    licences: dict[str, str]  # teacher -> licence
    left_out: int  # images that were not used at all, their records being broken or missing
    broken: int  # times that an image was skipped since what is kept of it is broken
    main_process: bool  # of those that trained together


def run(config: DistillConfig) -> Trained:
    """Train from the cache, or go on where OUT's checkpoint stands; the exported encoder and how to load it."""
    out = Path(config.out)
    check_run(config, out)
    accelerator = make_accelerator(config, out)
    with run_claimed(out, accelerator):
        snapshot = Snapshot.load(out) if check_run(config, out) else None
        begin_tracking(config, accelerator)
        return train(config, out, snapshot, accelerator)


def train(config: DistillConfig, out: Path, snapshot: Snapshot | None, accelerator: Accelerator) -> Trained:
    """All steps from the first, or from those of the snapshot's checkpoint, to the last."""
    spec = encoder_spec(config.student, config.img_size, config.patch_size, config.drop_path)
    tf32 = uses_tf32(config, accelerator)
    with thread_pool(config.threads) as pool, stop_on_signal() as stop, float32_products(tf32):
        cache, data, source = open_source(config, snapshot, pool, accelerator)
        total = config.steps or max(1, round(config.epochs * len(data.train) / config.batch_size))
        if accelerator.is_main_process:
            begins("distill", *facts(config, spec, data, total, accelerator))
            say_surroundings()
        encoder = build_encoder(spec, config.seed, config.init, said_sizes(config))
        targets = {teacher.name: target_spec(teacher) for teacher in data.teachers}
        ladder = Ladder(encoder.embed_dim, len(encoder.blocks), targets, config.seed, config.ladder_widths)
        model = Student(encoder, ladder)
        adamw = optimizer(model, config.peak_lr(), config.weight_decay)
        start, header = load_checkpoint(out, model, adamw) if snapshot else (0, {})
        trained, adamw = accelerator.prepare(model, adamw)
        restore(accelerator, header)
        keep_settings(config, out, data, accelerator)
        run_state = RunState(out, model, adamw, accelerator, spec, describe(config, data, tf32), start)

        learner = Learner(
            trained,
            spec,
            data.teachers,
            Targets(config, cache, data.teachers, data.snapshot.views, source, accelerator.device),
            config,
            accelerator,
        )
        order = Order(data.train, data.snapshot.numbers, config.seed)
        stream = Stream(
            cache,
            () if config.online else data.teachers,
            data.snapshot.views,
            data.pixels,
            pool,
            check_pixels=config.pixel_tolerance == 0,
            pin=accelerator.device.type == "cuda",
            skip_broken=config.skip_broken or config.online,
        )
        batches = stream.batches(learner.batches(order, start, total))
        log, meter, clock = RunLog(out, accelerator, start), learner.meter(), Clock()
        loss, broken = log.last_loss, 0
        with progress_of(config, accelerator, start, total) as bar:
            for done in range(start + 1, total + 1):
                with clock.waiting(), run_state.saved_on_error(done - 1):
                    batch = next(batches)
                rate = set_rate(adamw, config, done - 1, total)
                terms = learner.train_terms(batch, done - 1)
                accelerator.backward(terms.loss)
                adamw.step()
                adamw.zero_grad(set_to_none=True)
                meter.add(terms, float(batch.good_B.any()), batch.broken)
                bar.advance(config.batch_size)
                clock.count(config.batch_size)
                last, stopping = done == total, stop_agreed(accelerator, stop.made, done % config.log_every == 0)
                if done % config.log_every == 0 or last:
                    values = meter.read()
                    loss = finite(values["loss"], done)
                    broken += values["broken"]
                    with run_state.saved_on_error(done):
                        log.write("train", done, {"lr": rate, **values, **clock.read()})
                    bar.note(f"loss {loss:.4f}")
                if len(data.val) and (done % config.eval_every == 0 or last):
                    with run_state.saved_on_error(done):
                        log.write("val", done, learner.validate(stream, data.val, data.snapshot.numbers[0]))
                if done % config.save_every == 0 or last or stopping:
                    finite(terms.loss.item(), done)
                    run_state.save(done)
                if stopping and not last:
                    raise KeyboardInterrupt(f"stopped after step {done} of {total}; go on with --resume")
        if start == total:
            run_state.save(total)  # the run may have been stopped between its last checkpoint and its encoder
    log.close()
    if accelerator.is_main_process:
        draw_losses(out)
    path = out / ENCODER
    licences = {teacher.name: str(teacher.spec["provenance"]["licence"]) for teacher in data.teachers}
    left_out = data.train.left_out + data.val.left_out
    return Trained(path, timm_line(spec, path), total, loss, licences, left_out, broken, accelerator.is_main_process)


def open_source(
    config: DistillConfig, snapshot: Snapshot | None, pool: ThreadPoolExecutor, accelerator: Accelerator
) -> tuple[Cache, TrainingSet, Source]:
    """Where tokens come from, the cache or the teachers themselves, and what there is to train on."""
    if config.online:
        return open_live_set(config, pool, accelerator.device, (accelerator.process_index, accelerator.num_processes))
    cache = opened(config.cache)
    data = open_training_set(config, cache, pool, snapshot)
    return cache, data, Cached(data.teachers)


def draw_losses(out: Path) -> None:
    """OUT/loss.png; where it cannot be drawn the run is none the worse."""
    try:
        plot_losses(out / LOG, out / CURVE)
    except Exception as error:
        say(f"{out / CURVE} was not drawn: {reason(error)}")


def facts(
    config: DistillConfig, spec: EncoderSpec, data: TrainingSet, total: int, accelerator: Accelerator
) -> list[str]:
    """What is about to be done, for people."""
    processes = f"{accelerator.num_processes} process{'es' if accelerator.num_processes > 1 else ''}"
    views = data.snapshot.views
    return [
        f"{config.student} at {spec.img_size} px on {device_words(accelerator.device)}",
        f"{processes}, precision {config.precision}",
        f"{len(data.train):,} images x {len(data.snapshot.numbers)} views of {views.size} px ({views.recipe})",
        f"teachers {', '.join(teacher.name for teacher in data.teachers)}",
        f"{total:,} steps of {config.batch_size} images ({total * config.batch_size / len(data.train):,.4g} epochs)",
        f"into {config.out}",
    ]


def said_sizes(config: DistillConfig) -> tuple[str, ...]:
    """What of --init may be resampled: that whose size on the student's side was said."""
    sizes = config.img_size, config.patch_size
    return (*(("positions",) if sizes != (None, None) else ()), *(("patches",) if config.patch_size else ()))


def uses_tf32(config: DistillConfig, accelerator: Accelerator) -> bool:
    """Whether the student's float32 products run in TF32: on CUDA, as the authors' do, unless it is told otherwise."""
    cuda = accelerator.device.type == "cuda"
    if config.tf32 and not cuda:
        raise ConfigError(f"--tf32 is arithmetic of CUDA devices, and this run is on {accelerator.device.type}")
    used = cuda and config.tf32 is not False
    if used and accelerator.is_main_process:
        say("products of float32 run in TF32, as the authors' do; --no-tf32 for full precision")
    return used


def progress_of(config: DistillConfig, accelerator: Accelerator, start: int, total: int) -> Progress:
    """The bar over all images of the run; the main process's alone is seen."""
    size, seen = config.batch_size, accelerator.is_main_process
    return Progress("distill", total * size, "images", start * size, quiet=not seen)


def stop_agreed(accelerator: Accelerator, asked: bool, meeting: bool) -> bool:
    """Whether to stop here. Several processes agree at a meeting: one that stopped alone would leave others waiting."""
    if accelerator.num_processes == 1:
        return asked
    if not meeting:
        return False
    flag = torch.tensor([float(asked)], device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item())


def set_rate(adamw: Any, config: DistillConfig, step: int, total: int) -> float:
    """Give every parameter group the learning rate of step `step`."""
    rate = learning_rate(step, total, round(config.warmup * total), config.peak_lr(), config.min_lr)
    for group in adamw.param_groups:
        group["lr"] = rate
    return rate


def restore(accelerator: Accelerator, header: Mapping[str, Any]) -> None:
    """Put the fp16 scaler's state back. ConfigError where the run began with another number of processes."""
    before = header.get("processes", accelerator.num_processes)
    if before != accelerator.num_processes:
        raise ConfigError(
            f"the run began with {before} processes, not {accelerator.num_processes}: each draws and averages for "
            "itself, so resume with as many"
        )
    if accelerator.scaler is not None and header.get("scaler") is not None:
        accelerator.scaler.load_state_dict(header["scaler"])


def keep_settings(config: DistillConfig, out: Path, data: TrainingSet, accelerator: Accelerator) -> None:
    """Write what the run was asked for and what it trains on, once."""
    if accelerator.is_main_process and not (out / CHECKPOINT).exists():
        settings = config.to_json()
        if data.difference is not None:
            settings["pixel_difference"] = dataclasses.asdict(data.difference)
        LocalFolder(out).replace(CONFIG, (json.dumps(settings, sort_keys=True, indent=1) + "\n").encode())
        data.snapshot.save(out)


def describe(config: DistillConfig, data: TrainingSet, tf32: bool) -> dict[str, Any]:
    """What the student was made from: written into the exported encoder."""
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
