"""Stage two: one student learns from every teacher in the cache or, online, from the teachers themselves.

    views + stored codes -> student -> ladder -> loss against the decoded tokens -> step

A step is a pure function of its number and of the state before it: order, views, dropped teachers and dropped paths are
drawn from integers. A run that was stopped and resumed therefore equals one that never stopped.

Letters: B images, H and W pixels.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from pipelines.command.caches import opened
from pipelines.command.device import device_words
from pipelines.command.environment import say_surroundings
from pipelines.command.failures import reason
from pipelines.command.progress import Progress, begins, say
from pipelines.command.run_folder import as_begun, check_run
from pipelines.command.shares import rank_share
from pipelines.command.signals import Stopped, StopRequest, stop_on_signal
from pipelines.command.sizes import tell_student, tell_teachers
from pipelines.evaluating.knn_probe import KnnProbe, open_knn_probe
from pipelines.extracting.students import pixels_words, student_spec
from pipelines.training.compiling import check_compiler
from pipelines.training.divergence import finite
from pipelines.training.learner import Learner, check_batch, learn
from pipelines.training.online import open_live_set
from pipelines.training.outcome import Trained, ended_before, loading_line
from pipelines.training.processes import Meetings, make_accelerator, on_main, run_claimed
from pipelines.training.remote_run import RemoteRun, folder_of
from pipelines.training.run_state import RunState, describe, restore, save_settings, settle
from pipelines.training.runlog import Clock, RunLog
from pipelines.training.split import remember
from pipelines.training.starting import prepared, start_student, uses_tf32
from pipelines.training.targets import Cached, Source, Targets
from pipelines.training.tracking import begin_tracking
from pipelines.training.training_set import Snapshot, TrainingSet, open_training_set
from unic_cache.ahead import thread_pool
from unic_cache.cache import Cache
from unic_cache.config import DistillConfig
from unic_cache.evaluate.curves import plot_losses
from unic_cache.stream.batches import Batch, Stream
from unic_cache.stream.order import Order
from unic_cache.student.backbone import EncoderSpec
from unic_cache.student.export import licences_of
from unic_cache.student.ladder import can_share
from unic_cache.student.run_files import CURVE, ENCODER, LOG
from unic_cache.student.schedule import learning_rate
from unic_cache.tf32 import float32_products
from unic_cache.views.index import ShardEntry

Check = Callable[[RunLog, int], None]  # logs what is measured after a number of steps


def run(config: DistillConfig) -> Trained:
    """Train from the cache, or continue from OUT's checkpoint; return the exported encoder and how to load it."""
    with folder_of(config.out, rank_share().index == 0) as (out, remote):
        check_run(config, out)
        accelerator = make_accelerator(config, out)
        ended = ended_before(config, out, remote, accelerator)
        return run_in(out, remote, config, accelerator) if ended is None else ended


def run_in(out: Path, remote: RemoteRun | None, config: DistillConfig, accelerator: Accelerator) -> Trained:
    """`run` in the folder `out`, whose files are also sent to `remote`."""
    with stop_on_signal() as stop, run_claimed(out, accelerator), thread_pool(config.threads) as pool:
        snapshot = Snapshot.load(out) if check_run(config, out) else None
        settle(out, remote, accelerator)
        begin_tracking(config, accelerator, out)
        spec = student_spec(as_begun(config, out), out)
        tf32 = uses_tf32(config, accelerator)
        if config.compile:
            check_compiler(accelerator.device)

        # Data: images, and where the teachers' tokens come from
        cache, data, source = open_source(config, snapshot, pool, accelerator)
        total = config.total_steps(len(data.train))
        announce(config, spec, data, total, accelerator)
        probe = open_probe(config, spec, cache, data, pool, accelerator)

        # Model: encoder, projectors and AdamW, as the checkpoint has them when resuming
        begun = start_student(config, spec, data.teachers, out if snapshot else None, accelerator.is_main_process)
        model, adamw = prepared(accelerator, begun, config)
        average = None if begun.average is None else begun.average.module.to(accelerator.device)
        restore(accelerator, begun.header, {"steps": begun.steps, **asdict(data.snapshot)})

        # Training: every step from `start` on
        save_settings(config, out, data, accelerator, remote)
        targets = Targets(config, cache, data.teachers, data.snapshot.views, source, accelerator.device)
        learner = Learner(model, spec, data.teachers, targets, config, accelerator, average)
        check_batch(learner)
        stream = open_stream(config, cache, data, pool, accelerator.device)
        made_from = describe(config, data, tf32, begun.origin)
        parts = config.keep_checkpoints, config.shard_student, remote
        state = RunState(out, begun.student, adamw, accelerator, spec, made_from, begun.steps, begun.average, *parts)
        steps, order = range(begun.steps, total), Order(data.train, data.snapshot.numbers, config.seed)
        batches = stream.batches(learner.batches(order, steps))
        check = partial(validate, data, stream, learner, probe, state.exported)
        if accelerator.is_main_process:
            remember(config, cache, data.snapshot.val)
        with float32_products(tf32):
            loss, broken = train(batches, learner, check, state, steps, stop)
    if accelerator.is_main_process:
        draw_losses(out, remote)
    licences = licences_of(made_from)
    line, left_out = loading_line(spec, out, remote), data.train.left_out + data.val.left_out
    url = None if remote is None else remote.url
    return Trained(out / ENCODER, line, total, loss, licences, left_out, broken, accelerator.is_main_process, url)


def train(
    batches: Iterator[Batch], learner: Learner, check: Check, state: RunState, steps: range, stop: StopRequest
) -> tuple[float, int]:
    """Do `steps`; return the loss of the last logged ones, and how often an image was skipped as broken."""
    config, adamw, total, size = learner.config, state.adamw, steps.stop, learner.config.batch_size
    log, meter = RunLog(state.out, learner.accelerator, steps.start), learner.meter(training=True)
    clock, meetings = Clock(size // config.accumulate), Meetings(learner.accelerator, steps.start)
    catch_up(check, log, steps, config.eval_every)
    with Progress("distill", total * size, "images", steps.start * size, not state.accelerator.is_main_process) as bar:
        for step in steps:
            # Step: batch, loss, gradients, update
            rate = set_rate(adamw, config, step, total)
            with state.saved_on_error(step):
                terms = learn(partial(waited, batches, clock), learner, meter, step)
            adamw.step()
            adamw.zero_grad(set_to_none=True)
            state.update_average()
            done, last = step + 1, step + 1 == total

            # Log
            bar.advance(size)
            with state.saved_on_error(done):
                stopping = 0 if last else meetings.agreed(stop.number, done)
                values = meter.read() if done % config.log_every == 0 or last else None
            if values is not None:
                finite(values["loss"], done)
                with state.saved_on_error(done):
                    log.write("train", done, {"lr": rate, **values, **clock.read()})

            # Save, stop
            if done % config.save_every == 0 or last or stopping:
                finite(terms.loss.item(), done)
                state.save(done)
            if stopping:
                raise Stopped(f"stopped after step {done} of {total}; continue with --resume", stopping)

            # Validate: if that is cut short, a resumed run catches up on it
            if done % config.eval_every == 0 or last:
                with state.saved_on_error(done):
                    check(log, done)
            bar.note(log.note)
    if not steps:
        state.save(total)  # an earlier run may have stopped between its last checkpoint and its encoder
    log.close()
    return log.last_loss, meter.broken


def catch_up(check: Check, log: RunLog, steps: range, every: int) -> None:
    """Do what is left of the validation that was due when the run stopped or failed."""
    if steps.start and (steps.start % every == 0 or not steps):
        check(log, steps.start)


def waited(batches: Iterator[Batch], clock: Clock) -> Batch:
    """The next batch, or part of one."""
    with clock.waiting():
        return next(batches)


def validate(
    data: TrainingSet, stream: Stream, learner: Learner, probe: KnnProbe | None, encoder: Any, log: RunLog, done: int
) -> None:
    """Log the loss on held-out images, if there are any, and k-NN, if it is asked for; not what the log has already."""
    if len(data.val) and log.lacks("val", done):
        log.write("val", done, learner.validate(stream, data.val, data.snapshot.numbers[0]))
    if learner.config.knn_shards and log.lacks("knn", done) and probe is not None:  # in the main process alone
        log.write("knn", done, probe.measure(encoder))


def open_probe(
    config: DistillConfig, spec: EncoderSpec, cache: Cache, data: TrainingSet, pool: ThreadPoolExecutor, on: Accelerator
) -> KnnProbe | None:
    """The images of --knn-shards, in the main process alone: the others wait for it at their next meeting."""
    pattern = config.knn_shards
    if pattern is None:
        return None
    shards, names = cache.shards(), frozenset(data.snapshot.train)

    def trained(entry: ShardEntry) -> bool:
        segment, tar = shards.get(entry.name, (0, 0))
        return entry.name in names and cache.segments[segment].has(tar, entry.keys)

    return on_main(on, lambda: open_knn_probe(pattern, spec, pool, trained))


def open_source(
    config: DistillConfig, snapshot: Snapshot | None, pool: ThreadPoolExecutor, accelerator: Accelerator
) -> tuple[Cache, TrainingSet, Source]:
    """The cache, the images to train on, and the source of tokens: the cache, or the teachers themselves."""
    if config.online:
        worker = accelerator.process_index, accelerator.num_processes
        return open_live_set(config, pool, accelerator.device, worker, snapshot)
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
        known=frozenset(data.snapshot.records) if config.allow_missing else None,
    )


def draw_losses(out: Path, remote: RemoteRun | None) -> None:
    """Draw OUT/loss.png, and send it; a failure to draw is reported and does not fail the run."""
    try:
        plot_losses(out / LOG, out / CURVE)
    except Exception as error:
        said = f"{out / CURVE} was not drawn: {reason(error)}"
        say(said if remote is None else remote.told(said))
    if remote is not None:
        remote.send()


def announce(config: DistillConfig, spec: EncoderSpec, data: TrainingSet, total: int, accelerator: Accelerator) -> None:
    """Say what is about to be done, from the main process."""
    if not accelerator.is_main_process:
        return
    views, processes = data.snapshot.views, int(accelerator.num_processes)
    begins(
        "distill",
        f"{config.student} at {spec.img_size} px, {pixels_words(spec)}, on {device_words(accelerator.device)}",
        f"{processes} process{'es' if processes > 1 else ''}, precision {config.precision}",
        f"{len(data.train):,} images x {len(data.snapshot.numbers)} views of {views.size} px ({views.kind})",
        f"teachers {', '.join(teacher.name for teacher in data.teachers)}",
        f"{total:,} steps of {config.batch_size} images ({total * config.batch_size / len(data.train):,.4g} epochs)",
        f"into {config.out}",
    )
    say_surroundings()
    sizes = {teacher.name: int(teacher.spec["teacher"]["input_size"]) for teacher in data.teachers}
    tell_teachers(views.size, {} if config.online else sizes, "extract views of {size} px")
    tell_student(views.size, spec.img_size)
    for line in missing_lines(data):
        say(line)
    if config.pixel_tolerance and data.difference is not None:
        say(
            f"--pixel-tolerance {config.pixel_tolerance}: rows are no longer checked one by one, since their checksums "
            f"would differ; only the {data.difference.images} probed views were compared, so make sure that these are "
            "the tars that the teachers saw"
        )
    for teacher in data.teachers:
        if config.shared_projectors and len(teacher.kinds) > 1 and not can_share(teacher.kinds):
            widths = ", ".join(f"{kind} has {tokens.channels:,} channels" for kind, tokens in teacher.kinds.items())
            say(f"{teacher.name} keeps a projector per token kind ({widths})")


def missing_lines(data: TrainingSet) -> Iterator[str]:
    """What some teachers lack, of the images trained on and of those validated on."""
    pairs = len(data.train) * len(data.snapshot.numbers)
    for name, count in data.train.lacking.items():
        share = f"{count:,} of {pairs:,} (image, view) pairs ({count / pairs:.1%})"
        yield f"{name} is missing for {share}; it counts as dropped there (--allow-missing)"
    for name, count in data.val.lacking.items():
        yield (
            f"{name} is missing for {count:,} of {len(data.val):,} images of validation; its loss, and the mean of "
            "all, are those of the others"
        )


def set_rate(adamw: Any, config: DistillConfig, step: int, total: int) -> float:
    """Set the learning rate of step `step` in every parameter group, and return it."""
    rate = learning_rate(step, total, round(config.warmup * total), config.peak_lr(), config.min_lr)
    for group in adamw.param_groups:
        group["lr"] = rate
    return rate
