"""Each task on each encoder's features: which images train and which are tested, the metrics, and their comparison.

Two sets are training and test images. One set is asked leave-one-out where nothing is fitted (knn, retrieval), and
split by class elsewhere. No picture is on both sides.

Letters: N images, P pairs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.command.progress import Progress, say
from pipelines.evaluating.dense import depths_of, masks_of
from pipelines.evaluating.encoders import Encoder
from pipelines.evaluating.features import KeptFeatures
from pipelines.evaluating.labelled import Flags, LabelledShards, Rows, Usable, among, check_labels, tell_twins, twins
from pipelines.evaluating.row_files import Array, PickedRows
from unic_cache.config import EVALUATION_TASKS, EvaluateConfig
from unic_cache.errors import ConfigError, ShardError
from unic_cache.evaluate.split import Part, held_out
from unic_cache.evaluate.task import IGNORED, Examples, Metrics, Settings
from unic_cache.evaluate.tasks import TASKS

OF_CLASSES = ("knn", "linear", "retrieval")  # tasks that need `.cls` labels
ASKED = ("knn", "retrieval")  # nothing is fitted: a single set is asked leave-one-out
NEEDS = {"segmentation": "masks (`.mask.png`)", "depth": "depth maps (`.depth.png` or `.depth.npy`)"}
TESTED = 0.2  # of each class, where a single set is split
MANY = 50_000  # training images, from which on L-BFGS gives way to SGD


@dataclass(frozen=True)
class Sides:
    """The rows of the training and of the test set that a task uses, and pairs of them with equal pixels."""

    train: Rows
    test: Rows
    leave_one_out: bool
    twins_P2: Tensor  # positions in (test, train)


@dataclass(frozen=True)
class Measured:
    """A task's metrics of every encoder that has what it needs, on the same test images."""

    metrics: Mapping[str, Metrics]  # by encoder
    images: int
    classes: int


def allowed(tasks: Sequence[str], sets: Sequence[LabelledShards]) -> list[str]:
    """The tasks asked for, or else those that the labels allow. ShardError if a set lacks a task's labels."""
    chosen = [task for task in EVALUATION_TASKS if task in tasks]
    if not chosen:
        dense = [task for task in NEEDS if all(flags(one, task).any() for one in sets)]
        classes = not dense or all(len(set(one.labels_N[one.classed].tolist())) > 1 for one in sets)
        chosen = [task for task in EVALUATION_TASKS if task in dense or (task in OF_CLASSES and classes)]
    for one in sets:
        for task in chosen:
            if task in OF_CLASSES:
                check_labels(one.pattern, one.labels_N[one.classed].tolist())
            elif not flags(one, task).any():
                raise ShardError(
                    f"{one.pattern}: none of its images has what {task} needs: {NEEDS[task]}. Pack them beside the "
                    f"images with `unic-cache shard --{'masks' if task == 'segmentation' else 'depths'} DIR`"
                )
    return chosen


def flags(images: LabelledShards, task: str) -> Flags:
    """(N,) which images have the labels that a task needs."""
    return {"segmentation": images.masked_N, "depth": images.deep_N}.get(task, images.classed)


def measure(
    task: str,
    config: EvaluateConfig,
    sets: Sequence[Usable],
    features: Mapping[str, Sequence[KeptFeatures]],
    encoders: Sequence[Encoder],
    labels: "DenseLabels",
    device: torch.device,
    bar: Progress,
) -> Measured | None:
    """One task on every encoder that can take part; None if none can, or if a head would train on test images.

    ShardError for sets that cannot be measured so; ConfigError if it was asked for and no encoder can take part.
    """
    train, test = sets[0], sets[-1]
    dense_train, dense_test = labels.of(task, train), labels.of(task, test)
    sides = sides_of(task, train, test, config.seed, dense_train)
    if not fair(task, train, test, sides, task in config.task):
        return None
    check_sides(task, train, test, sides)
    settings = settings_of(config, sides, device)
    found: dict[str, Metrics] = {}
    able = able_ones(task, encoders, task in config.task)
    for one in able:
        bar.note(f"{task} of {one.name}")
        bar.watch()
        pair = features[one.name]
        args = (one, task)
        own = examples(*args, pair[0], train, sides.train, dense_train)
        asked = own if sides.leave_one_out else examples(*args, pair[-1], test, sides.test, dense_test)
        try:
            found[one.name] = TASKS[task](own, asked, settings)
        except ConfigError as error:
            raise ConfigError(f"{task} of {one.name}: {error}") from error
        bar.advance(1)
    if not able:
        return None
    if task in OF_CLASSES:
        classes = len(set(test.images.labels_N[sides.test].tolist()))
    else:
        classes = len(np.setdiff1d(np.unique(dense_test[sides.test]), [IGNORED])) if task == "segmentation" else 0
    return Measured(found, len(sides.test), classes)


def able_ones(task: str, encoders: Sequence[Encoder], asked: bool) -> list[Encoder]:
    """The encoders that have what a task reads; says which have not. ConfigError if none has and it was `asked` for."""
    able = [one for one in encoders if task not in NEEDS or one.grid is not None]
    without = [one.name for one in encoders if one not in able]
    if without:
        say(f"{task}: left out {', '.join(without)}, without a whole grid of patch tokens")
    if asked and not able:
        raise ConfigError(f"{task}: no encoder has a whole grid of patch tokens; name another with --encoder")
    return able


def settings_of(config: EvaluateConfig, sides: Sides, device: torch.device) -> Settings:
    """What the tasks are told."""
    return Settings(
        seed=config.seed,
        device=device,
        leave_one_out=sides.leave_one_out,
        twins_P2=sides.twins_P2,
        neighbours=tuple(sorted({*config.neighbours, config.k})),
        k=config.k,
        temperature=config.temperature,
        solver=config.solver or ("lbfgs" if len(sides.train) <= MANY else "sgd"),
        steps=config.head_steps,
    )


def examples(encoder: Encoder, task: str, kept: KeptFeatures, usable: Usable, rows: Rows, dense: Array) -> Examples:
    """The rows of a set as a task reads them."""
    summary_ND = torch.from_numpy(np.asarray(kept.summary_ND[rows], np.float32))
    if task in OF_CLASSES:
        return Examples(summary_ND, usable.images.labels_N[rows])
    assert kept.patches_NTD is not None, encoder.name
    patches: Any = PickedRows(kept.patches_NTD, rows)
    labels: Any = PickedRows(dense, rows)
    masks = {"masks_NHW": labels} if task == "segmentation" else {"depths_NHW": labels}
    return Examples(summary_ND, None, patches, encoder.grid, **masks)


def sides_of(task: str, train: Usable, test: Usable, seed: int, dense: Array) -> Sides:
    """Which good images with the task's labels train, and which are tested."""
    own, asked = (np.flatnonzero(one.good_N & flags(one.images, task)) for one in (train, test))
    pairs_P2 = twins(train, test)
    leave_one_out = train is test and task in ASKED
    if train is test and not leave_one_out:
        tested = split(train, own, pairs_P2, seed)
        if task == "segmentation":
            tested &= ~needed_to_train(own, tested, dense)
            together_P2 = among(pairs_P2, own, own)
            tested[[one for one, other in together_P2.tolist() if not tested[other]]] = False
        own, asked = own[~tested], own[tested]
        pairs_P2 = pairs_P2[:0]
    return Sides(own, asked, leave_one_out, among(pairs_P2, asked, own))


def split(usable: Usable, rows: Rows, pairs_P2: Tensor, seed: int) -> Flags:
    """Which rows are test images: a seeded fifth of each class, at least one of two or more. Twins stay together."""
    twin_of: dict[int, int] = {}
    for one, other in pairs_P2.tolist():
        twin_of[max(one, other)] = min(twin_of.get(max(one, other), one), one, other)
    heads = np.array([row for row in rows.tolist() if row not in twin_of], np.int64)
    tested = set(heads[held_out(usable.images.labels_N[heads], TESTED, seed, Part.TEST)].tolist())
    return np.array([twin_of.get(row, row) in tested for row in rows.tolist()], np.bool_)


def needed_to_train(rows: Rows, tested: Flags, masks_NHW: Array) -> Flags:
    """Test images to move to training, so that each class of a mask is trained on: the first that has it."""
    has = [set(np.unique(masks_NHW[row]).tolist()) - {IGNORED} for row in rows]
    trained: set[int] = set().union(*(own for own, test in zip(has, tested, strict=True) if not test))
    moved = np.zeros(len(rows), np.bool_)
    for place in np.flatnonzero(tested).tolist():
        if has[place] - trained:
            moved[place] = True
            trained |= has[place]
    return moved


def fair(task: str, train: Usable, test: Usable, sides: Sides, asked: bool) -> bool:
    """Whether no head would train on what it is tested on. ShardError if one would and the task was `asked` for."""
    told = tell_twins(train, test, sides.twins_P2, sides.test)
    if told and task in ASKED:
        say(f"{task}: {told}; twins do not vote for each other")
    elif told and asked:
        raise ShardError(f"{task}: {told}; a head must not train on what it is tested on: remove them from one set")
    elif told:
        say(f"{task}: left out, since {told}, and a head must not train on what it is tested on")
    return not told or task in ASKED


def check_sides(task: str, train: Usable, test: Usable, sides: Sides) -> None:
    """ShardError without images on one side, for one class only, or for a class in test that train lacks."""
    if not len(sides.train) or not len(sides.test):
        raise ShardError(
            f"{test.images.pattern}: no usable image to {'train' if not len(sides.train) else 'test'} {task}"
        )
    if task not in OF_CLASSES:
        return
    own, asked = (one.images.labels_N[rows].tolist() for one, rows in ((train, sides.train), (test, sides.test)))
    check_labels(train.images.pattern, own)
    if len(sides.test) and not sides.leave_one_out and train is not test:
        check_labels(test.images.pattern, asked)
    unknown = next((place for place, label in enumerate(asked) if label not in set(own)), None)
    if unknown is not None:
        where = test.source.where(test.images.wanted[int(sides.test[unknown])])
        raise ShardError(
            f"{where} is of class {asked[unknown]}, of which {train.images.pattern} has no image; train on all "
            "classes, or remove that class from the test images"
        )


class DenseLabels:
    """Masks and depth maps of the sets, read once each into files."""

    def __init__(self, folder: Path, pool: Any) -> None:
        self._folder, self._pool = folder, pool
        self._found: dict[tuple[str, int], Array] = {}

    def of(self, task: str, usable: Usable) -> Array:
        """(N, H, W) of all wanted images of a set; empty for a task of classes."""
        read: Callable[..., Array] | None = {"segmentation": masks_of, "depth": depths_of}.get(task)
        if read is None:
            return np.zeros((0, 0, 0), np.uint8)
        key = task, id(usable)
        if key not in self._found:
            self._found[key] = read(usable, self._folder / f"labels-{len(self._found)}", self._pool)
        return self._found[key]
