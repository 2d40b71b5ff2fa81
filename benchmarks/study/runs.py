"""The plan as plain data: every run with all that defines it, in the order in which they are done.

Online distillation shows a new view in each epoch. A view is a pure function of its number, so a float16 cache with as
many views as epochs gives the student the same pixels and, to float16, the same targets as teachers that run beside it:
that run is called `cache/online`.

The first runs change one thing at a time. Once these have lines, what held is tried together.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.study.results import Line
from benchmarks.study.scales import Base, Scale, Training
from benchmarks.study.verdicts import ACCEPTED, outcome
from unic_cache.config import FITTED

F16 = "f16"
CODER = "pcodec"  # the smaller one
QUALITIES = (0.99, 0.96, 0.90, 0.80)
CLS_QUALITIES = (0.99, 0.96)  # beside patch tokens at the finest
VIEWS = (10, 5, 4, 2, 1)  # 4 was the default of `extract`
COMBINED_VIEWS = (5, 10)
QUICK = {"knn": ("emoji-google", "emoji-twitter", "food"), "segmentation": ("composed",)}
CLASSES = ("emoji-google", "emoji-twitter", "emoji-fluent", "food", "cells", "garments")
FITTED_ON = ("emoji-google", "food")  # sets of the linear task: each takes minutes for every encoder
EVERY = {"knn": CLASSES, "retrieval": CLASSES, "linear": FITTED_ON, "segmentation": ("composed",)}
ONLINE, PAPER, STARTED, FROM_RANDOM = "cache/online", "paper/unic", "claim/started", "claim/random"
NEITHER = "paper/last-layer-no-dropping"
UNTRAINED, UNTRAINED_START, UNTRAINED_RANDOM = "untrained/small", "untrained/started", "untrained/random"
STARTS = {STARTED: UNTRAINED_START, FROM_RANDOM: UNTRAINED_RANDOM}
RESAMPLES = 1000


@dataclass(frozen=True)
class Run:
    """One run: its settings are JSON-ready and hold all that defines it."""

    name: str
    seed: int
    settings: Mapping[str, Any]

    @property
    def against(self) -> list[tuple[str, int]]:
        """The runs (name, seed) that it is compared with on the same images."""
        return [(str(name), int(seed)) for name, seed in self.settings["against"]]

    @property
    def folder(self) -> str:
        """Its own name on the disk."""
        return f"{re.sub('[/:]', '-', self.name)}-{self.seed}"


@dataclass(frozen=True)
class Kept:
    """One way to store features: of `tokens` a lattice or a random sample, or all; CLS tokens in float16, or coded."""

    codec: str = F16
    quality: float | None = None
    tokens: int | None = None
    sampling: str | None = None
    coder: str | None = None
    cls_quality: float | None = None

    @property
    def name(self) -> str:
        """Of its folder, and in a run's name."""
        codec = self.codec if self.quality is None else f"{self.codec}-{self.quality:.2f}"
        cls = "" if self.cls_quality is None else f"-cls-{self.cls_quality:.2f}"
        return f"{codec}{cls}" if self.tokens is None else f"{codec}{cls}-{self.sampling}-{self.tokens}"

    def to_json(self) -> dict[str, Any]:
        """As a part of a run's settings; `cls_quality`, which came later, only if there is one."""
        found = dataclasses.asdict(self)
        return {key: value for key, value in found.items() if key != "cls_quality" or value is not None}


def plan(scale: Scale, lines: Sequence[Line] = ()) -> list[Run]:
    """Every run in order: references first, then what decides most. `lines` decide which settings are combined."""
    first, *more = scale.seeds
    claims = [claim_runs(scale, seed) for seed in scale.claim_seeds]
    kept, paper = cache_runs(scale, first), paper_runs(scale, first)
    runs = [*references(scale), *kept, *paper[:2], claims[0][0], *combined_runs(scale, first, kept, lines)]
    runs += [*paper[2:], claims[0][1], *itertools.chain(*claims[1:])]
    for seed in more:
        online = cache_runs(scale, seed)[0]  # how much the seed alone changes
        runs += [online, *paper_runs(scale, seed), *combined_runs(scale, seed, kept, lines)]
    return runs


def references(scale: Scale) -> list[Run]:
    """Every teacher, and every student untrained, the large one from either start."""
    teachers = [_measured(scale, teacher_run(name), 0, {"teacher": name}, EVERY, []) for name in scale.teachers]
    small = {"student": _student(scale.small), "init": None}
    large = _student(scale.large)
    return [
        *teachers,
        _measured(scale, UNTRAINED, 0, {"untrained": small}, QUICK, []),
        _measured(scale, UNTRAINED_START, 0, {"untrained": {"student": large, "init": scale.start}}, EVERY, []),
        _measured(scale, UNTRAINED_RANDOM, 0, {"untrained": {"student": large, "init": None}}, EVERY, []),
    ]


def teacher_run(name: str) -> str:
    """The run that measures a teacher."""
    return f"teachers/{name}"


def cache_runs(scale: Scale, seed: int) -> list[Run]:
    """Online, then quality, tokens and views one at a time; of a second seed, online is compared with the first's."""
    base, first = scale.ablation, scale.seeds[0]
    runs = [cached(scale, seed, base.views, Kept(), [] if seed == first else [(ONLINE, first)])]
    runs += [cached(scale, seed, base.views, kept) for kept in (*qualities(), *samples(scale), *summaries())]
    return [*runs, *(cached(scale, seed, views, Kept()) for views in VIEWS)]


def qualities() -> list[Kept]:
    """The fitted codec, finest first."""
    return [Kept(FITTED, quality, coder=CODER) for quality in QUALITIES]


def summaries() -> list[Kept]:
    """CLS tokens coded too, finest first."""
    return [dataclasses.replace(qualities()[0], cls_quality=quality) for quality in CLS_QUALITIES]


def samples(scale: Scale) -> list[Kept]:
    """As many random tokens as the lattice has, and the lattice."""
    return [Kept(tokens=scale.lattice, sampling=how) for how in ("random", "lattice")]


def cached(scale: Scale, seed: int, views: int, kept: Kept, against: list[tuple[str, int]] | None = None) -> Run:
    """A run of the ablations' student, as many epochs as there are views online."""
    base = scale.ablation
    online = views == base.views and kept == Kept()
    distill = {**_training(scale.small), "lr": scale.ablation_lr, "epochs": base.views, "views": views}
    return _trained(
        scale,
        ONLINE if online else f"cache/{views}-views-{kept.name}",
        seed,
        (base, kept, distill, QUICK),
        [(ONLINE, seed)] if against is None else against,
    )


def combined_runs(scale: Scale, seed: int, singles: Sequence[Run], lines: Sequence[Line]) -> list[Run]:
    """What held alone, together: none before all single settings have lines.

    At each of two numbers of views that held, the lowest quality that held: with CLS tokens coded and a sample of the
    patch tokens, then of all patch tokens, then with CLS tokens in float16 too. Of two samples the lattice is taken,
    whose codes are the smaller ones.
    """
    first, online = scale.seeds[0], scale.ablation.views
    found = {line.run: line for line in lines if line.settings["scale"] == scale.name and line.seed == first}
    if any(run.name not in found for run in singles):
        return []

    def held(count: int, kept: Kept) -> bool:
        return outcome(found[cached(scale, first, count, kept).name], ONLINE) in ACCEPTED

    def lowest(tried: Sequence[Kept]) -> Kept:
        return [Kept(), *(kept for kept in tried if held(online, kept))][-1]

    codec, sample, cls = lowest(qualities()), lowest(samples(scale)), lowest(summaries())
    coded = codec if codec == Kept() else dataclasses.replace(codec, cls_quality=cls.cls_quality)
    sampled = dataclasses.replace(coded, tokens=sample.tokens, sampling=sample.sampling)
    settings = dict.fromkeys((sampled, coded, codec))  # in this order, each once
    runs = [cached(scale, seed, count, kept) for kept in settings for count in COMBINED_VIEWS if held(count, Kept())]
    alone = {run.name for run in singles}
    return [run for run in runs if run.name not in alone]


def paper_runs(scale: Scale, seed: int) -> list[Run]:
    """UNIC as published, neither of its two ideas, then one change at a time, and teacher subsets (Figure 6).

    Of a second seed, UNIC as published is compared with the first's.
    """
    subsets = [one for size in range(1, len(scale.teachers)) for one in itertools.combinations(scale.teachers, size)]
    changes: dict[str, dict[str, Any]] = {
        PAPER: {},
        NEITHER: {"projector": "last", "drop_teacher": 0.0},
        "paper/no-dropping": {"drop_teacher": 0.0},
        "paper/dropping-per-image": {"balancing": "image"},
        "paper/targets-phi-s": {"standardize": "phi-s"},
        "paper/targets-not-standardized": {"standardize": "none"},
        "paper/last-layer": {"projector": "last"},
        "paper/cls-only": {"kinds": ["cls"]},
        "paper/shared-projectors": {"shared_projectors": True},
        **{f"paper/teachers-{'+'.join(short(name) for name in one)}": {"teachers": list(one)} for one in subsets},
    }
    base, first = scale.ablation, scale.seeds[0]
    distill = {
        **_training(scale.small),
        "lr": scale.ablation_lr,
        "epochs": scale.ablation_epochs,
        "views": scale.ablation_epochs,
    }
    return [
        _trained(
            scale,
            name,
            seed,
            (base, Kept(), {**distill, **change}, QUICK),
            [(PAPER, seed)] if name != PAPER else [] if seed == first else [(PAPER, first)],
            losses="kinds" not in change,  # a loss over other tokens cannot be compared
        )
        for name, change in changes.items()
    ]


def claim_runs(scale: Scale, seed: int) -> list[Run]:
    """The large student from a teacher's weights and from random ones, against teachers and its untrained start."""
    kept, teachers = Kept(FITTED, 0.99, coder=CODER), [(teacher_run(name), 0) for name in scale.teachers]
    distill = {**_training(scale.large), "epochs": scale.claim_epochs, "views": scale.claim.views}
    both = {STARTED: {"lr": scale.started_lr, "init": scale.start}, FROM_RANDOM: {"lr": scale.random_lr}}
    return [
        _trained(scale, name, seed, (scale.claim, kept, {**distill, **own}, EVERY), [*teachers, (STARTS[name], 0)])
        for name, own in both.items()
    ]


def short(teacher: str) -> str:
    """A teacher's name without its input size."""
    return teacher.partition("@")[0]


def _student(training: Training) -> dict[str, Any]:
    return {"student": training.student, "img_size": training.img_size, "patch_size": training.patch_size}


def _training(training: Training) -> dict[str, Any]:
    return {**_student(training), "batch_size": training.batch_size, "precision": training.precision}


def _trained(
    scale: Scale,
    name: str,
    seed: int,
    made_of: tuple[Base, Kept, dict[str, Any], Mapping[str, Iterable[str]]],
    against: list[tuple[str, int]],
    losses: bool = True,
) -> Run:
    base, kept, distill, tasks = made_of
    images = {
        "base": base.name,
        "images": base.images,
        "views": base.views,
        "unseen_views": base.unseen_views,
        "size": scale.view_size,
        "teachers": list(scale.teachers),
    }
    encoder = {"images": images, "cache": kept.to_json(), "distill": distill, "losses": losses}
    return _measured(scale, name, seed, encoder, tasks, against)


def _measured(
    scale: Scale,
    name: str,
    seed: int,
    encoder: dict[str, Any],
    tasks: Mapping[str, Iterable[str]],
    against: list[tuple[str, int]],
) -> Run:
    evaluate = {
        "size": scale.view_size,
        "labelled_images": scale.labelled_images,
        "tasks": {task: list(sets) for task, sets in tasks.items()},
        "head_steps": scale.head_steps,
        "resamples": RESAMPLES,
    }
    return Run(
        name,
        seed,
        {"scale": scale.name, **encoder, "evaluate": evaluate, "against": [list(one) for one in against]},
    )
