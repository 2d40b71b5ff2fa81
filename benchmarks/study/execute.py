"""One run, from its settings to its line: caches, student, measures, comparison.

Everything before the line may be stopped and done again: stages make only what is missing.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from benchmarks.study.caches import WEIGHTS, Caches
from benchmarks.study.measure import compared, load_sums, loss_sums, save_sums, task_sums, with_pooled
from benchmarks.study.results import Line, append_line, finished, read_lines
from benchmarks.study.runs import Run, plan
from benchmarks.study.scales import Scale
from benchmarks.study.sets import Sets
from pipelines import distill
from pipelines.command.device import device_words, pick_device
from pipelines.command.progress import say
from pipelines.evaluating.encoders import RANDOM, Encoder, from_module, from_network, from_run
from pipelines.extracting.opening_options import TeacherOptions
from pipelines.extracting.teacher_weights import load_teachers
from pipelines.training.held_out_losses import held_out_losses
from unic_cache.config import DistillConfig
from unic_cache.errors import CacheError, ConfigError
from unic_cache.files.local import LocalFolder
from unic_cache.student.backbone import build_encoder, encoder_spec
from unic_cache.student.run_files import CHECKPOINT
from unic_cache.teachers.catalog import resolve


@dataclass
class Study:
    """Where a study works, and what it works on."""

    scale: Scale
    work: Path
    results: Path
    sets: Sets
    weights: WEIGHTS = ()  # files of teachers without published weights
    device: torch.device = field(default_factory=lambda: pick_device("auto"))

    def __post_init__(self) -> None:
        self.caches = Caches(self.work, self.sets, self.weights)

    def run_all(self, only: str = "") -> int:
        """Do every run of the plan without a line whose name begins with `only`; return how many were done."""
        if not any(run.name.startswith(only) for run in plan(self.scale, read_lines(self.results))):
            raise ConfigError(f"no run of the plan begins with {only!r}; --list shows all of them")
        done = 0
        while (run := self.next_run(only)) is not None:
            say(f"study: {run.name}, seed {run.seed}")
            began = time.monotonic()
            figures = self.figures(run)
            append_line(
                self.results, Line(run.name, run.seed, run.settings, figures, round(time.monotonic() - began, 1))
            )
            done += 1
        return done

    def next_run(self, only: str) -> Run | None:
        """The first run without a line. ConfigError if one was done with other settings."""
        lines = read_lines(self.results)
        left = [
            run
            for run in plan(self.scale, lines)
            if finished(lines, (self.scale.name, run.name, run.seed), run.settings) is None
        ]
        return next((run for run in left if run.name.startswith(only)), None)

    def figures(self, run: Run) -> dict[str, Any]:
        """Do a run: train if it trains, measure, compare."""
        for name, seed in run.against:  # a run takes long, and without its reference it is worth nothing
            self.reference(name, seed, {})
        settings, found = run.settings, {}
        losses: dict[str, Any] = {}
        keys: dict[str, Any] = {}
        if "distill" in settings:
            out = self.trained(run)
            found["bytes"] = self.caches.bytes_kept(settings)
            encoder = from_run(run.name, str(out), self.device)
            if settings["losses"]:
                losses, keys = self.losses(settings, out)
        else:
            encoder = self.untrained(run)
            if "teacher" in settings:
                spec = resolve(settings["teacher"])
                found["teacher"] = f"{spec.about}; {spec.licence}"
            found["sets"] = {one.name: one.about for one in self.sets.labelled}
        tasks = task_sums(encoder, self.sets.labelled, settings["evaluate"], self.device)
        sums = with_pooled({**losses, **tasks})
        others = {name: self.reference(name, seed, keys) for name, seed in run.against}
        found |= compared(sums, others, settings["evaluate"]["resamples"])
        found["test_images"] = {name: len(values) for name, values in sums.items()}
        found["machine"] = {"device": device_words(self.device), "cores": os.cpu_count(), "torch": torch.__version__}
        if self.is_reference(run):
            save_sums(self.values(run.folder), sums, keys)
        return found

    def is_reference(self, run: Run) -> bool:
        """Whether others are compared with it: a name's every seed, since later lines may add runs of that seed."""
        return any(run.name == name for one in plan(self.scale) for name, _ in one.against)

    def trained(self, run: Run) -> Path:
        """The folder of the run's student, trained to its end, from its checkpoint if it has one."""
        settings, out = run.settings, self.work / "runs" / run.folder
        options = {
            name: tuple(value) if isinstance(value, list) else value for name, value in settings["distill"].items()
        }
        if options.get("init") is not None:
            options["init"] = str(self.start(options["init"]))
        config = DistillConfig(
            cache=str(self.caches.of(settings)),
            shards=self.caches.trained(settings["images"]),
            out=str(out),
            seed=run.seed,
            resume=(out / CHECKPOINT).exists(),
            save_every=100,
            tracker="none",
            **options,
        )
        distill.run(config)
        return out

    def losses(self, settings: Mapping[str, Any], out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """(sums, keys) of the loss against float16 targets: new views of the trained images, and images never seen."""
        images, cache = settings["images"], str(self.caches.base(settings["images"]))
        asked: list[tuple[str, str, Sequence[int]]] = [("loss-images", self.caches.held_out(), (0,))]
        if images["unseen_views"]:
            numbers = range(images["views"], images["views"] + images["unseen_views"])
            asked.append(("loss-views", self.caches.trained(images), tuple(numbers)))
        sums: dict[str, Any] = {}
        keys: dict[str, Any] = {}
        for kind, shards, numbers in asked:
            found = held_out_losses(out, cache, shards, numbers, device=self.device)
            whole = set(found.teachers) == set(images["teachers"])
            sums |= loss_sums(kind, found.losses_nB.numpy(), found.teachers, whole)
            keys[kind] = np.array(found.shown)
        return sums, keys

    def untrained(self, run: Run) -> Encoder:
        """A teacher, or a student as it is before training."""
        settings = run.settings
        if "teacher" in settings:
            return from_network(run.name, self.teacher(settings["teacher"]))
        own = settings["untrained"]
        student = own["student"]
        spec = encoder_spec(student["student"], student["img_size"], student["patch_size"], drop_path=0.0)
        init = None if own["init"] is None else str(self.start(own["init"]))
        return from_module(run.name, RANDOM, build_encoder(spec, run.seed, init), spec, self.device)

    def start(self, teacher: str) -> Path:
        """The teacher's weights as a file that --init takes."""
        path = self.work / "init" / f"{teacher.replace(':', '-')}.safetensors"
        if not path.exists():
            state = {name: value.cpu().contiguous() for name, value in self.teacher(teacher).model.state_dict().items()}
            path.parent.mkdir(parents=True, exist_ok=True)
            LocalFolder(path.parent).replace(path.name, save(state))
        return path

    def teacher(self, name: str) -> Any:
        """A teacher with its weights."""
        weights = tuple(pair for pair in self.weights if pair[0] == name)
        return load_teachers(TeacherOptions((name,), weights), self.device)[name]

    def reference(self, name: str, seed: int, keys: Mapping[str, Any]) -> dict[str, Any]:
        """The sums of a run to compare with. CacheError unless both have losses of the same images."""
        sums, theirs = load_sums(self.values(Run(name, seed, {}).folder))
        other = next((kind for kind in keys if kind in theirs and not np.array_equal(keys[kind], theirs[kind])), None)
        if other is not None:
            raise CacheError(f"{other} of {name} is of other images; was a set made anew? Use another --work")
        return sums

    def values(self, folder: str) -> Path:
        """The file of a reference's values per image, beside the results: whoever has these can compare with it."""
        return self.results.parent / "values" / f"{folder}.npz.xz"
