"""Figures of training: losses, teacher coefficients and k-NN by step."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unic_cache.evaluate.drawing import COLOURS, HALF, Picture, finish, label, legend, panels, style
from unic_cache.evaluate.run_log import (
    KNN,
    NEEDS,
    TRAIN,
    VAL,
    Record,
    kind_losses,
    knn_percents,
    read_log,
    teacher_losses,
    teacher_shares,
)
from unic_cache.files.local import LocalFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = {TRAIN: "-", VAL: "o"}
MOST = 400  # points of a line: a long run's log would make a page of megabytes
Points = list[tuple[float, float]]  # (step, value)


@dataclass(frozen=True)
class Training:
    """A run's records, under the label that it has in figures."""

    label: str
    records: Sequence[Record]
    drop: float  # probability of dropping a teacher

    def points(self, kind: str, values: Callable[[Record], Mapping[str, float]], name: str) -> Points:
        """(step, value) of the records of one kind whose values have the name; of many, the means of MOST spans."""
        found = [(int(record["step"]), values(record)) for record in self.records if record["kind"] == kind]
        points = [(float(step), own[name]) for step, own in found if name in own]
        return points if len(points) <= MOST else [_mean(span) for span in np.array_split(np.array(points), MOST)]


@style()
def loss_figure(runs: Sequence[Training]) -> Picture | None:
    """The loss of each teacher, a panel each, with all runs on one axis (UNIC's Figure 4); None without losses."""
    names = _teachers(runs)
    if not names:
        return None
    figure, axes = panels(len(names), 2.6)
    for own, name in zip(axes, names, strict=True):
        for number, run in enumerate(runs):
            colour = COLOURS[number % len(COLOURS)]
            for kind, line in LINES.items():
                points = run.points(kind, teacher_losses, name)
                shown = f"{run.label}{', held out' if kind == VAL else f' (dropping {run.drop:g})'}"
                _plot(own, points, line, colour, label(shown))
        own.set(title=label(name, HALF), xlabel="step", ylabel="loss")
    legend(figure, axes)
    listed = ", ".join(f"{run.label} with teacher dropping {run.drop:g}" for run in runs)
    return finish(
        figure,
        "loss-per-teacher",
        "Loss per teacher",
        f"Training and held-out loss by step for the teachers {', '.join(names)}, one panel each; runs: {listed}.",
        "The mean over a teacher's token kinds, before dropping. Lines: training, of a long log as means over spans "
        "of steps; points: held-out images, no teacher dropped. Runs with and without dropping compare on one axis "
        "(UNIC's Figure 4).",
    )


@style()
def coefficient_figure(runs: Sequence[Training]) -> Picture | None:
    """How often each teacher counts, and how often its loss is the highest (UNIC's Figure 5); None without records."""
    shared = partial(teacher_shares, share="coefficient")
    drawn = [run for run in runs if any(run.points(TRAIN, shared, name) for name in _teachers([run]))]
    if not drawn:
        return None
    names = _teachers(drawn)
    figure, axes = panels(2 * len(drawn), 2.4)
    for row, run in enumerate(drawn):
        for own, share, title in zip(
            axes[2 * row :], ("coefficient", "top"), ("counts in the loss", "highest loss"), strict=False
        ):
            for number, name in enumerate(names):
                points = run.points(TRAIN, partial(teacher_shares, share=share), name)
                _plot(own, points, "-", COLOURS[number % len(COLOURS)], label(name))
            own.set(
                title=label(f"{run.label}: {title}", HALF), xlabel="step", ylabel="share of images", ylim=(-0.03, 1.03)
            )
    legend(figure, axes)
    return finish(
        figure,
        "teacher-coefficients",
        "Teacher coefficients",
        f"Share of images on which each of {', '.join(names)} counts, and has the highest loss, by step; runs: "
        f"{', '.join(run.label for run in drawn)}.",
        "Left: the mean coefficient, the share of images for which a teacher was not dropped. Right: the share on "
        "which its loss was the highest, so that it could not be dropped (UNIC's Figure 5).",
    )


@style()
def knn_figure(runs: Sequence[Training]) -> Picture | None:
    """k-NN accuracy while training, with its interval; None if no run logged it."""
    drawn = [run for run in runs if run.points(KNN, knn_percents, "accuracy")]
    if not drawn:
        return None
    figure, (axes,) = panels(1, 3)
    for number, run in enumerate(drawn):
        colour = COLOURS[number % len(COLOURS)]
        parts = {key: run.points(KNN, knn_percents, key) for key in NEEDS[KNN]}
        steps, low, high = ([point[at] for point in parts[key]] for key, at in (("low", 0), ("low", 1), ("high", 1)))
        _plot(axes, parts["accuracy"], "o-", colour, label(run.label))
        axes.fill_between(steps, low, high, color=colour, alpha=0.15, linewidth=0)
    kept = sorted({str(record.get("k", "?")) for run in drawn for record in run.records if record["kind"] == KNN})
    axes.set(xlabel="step", ylabel=f"{'/'.join(kept)}-NN accuracy, %")
    legend(figure, [axes])
    last = ", ".join(f"{run.label} {run.points(KNN, knn_percents, 'accuracy')[-1][1]:.1f} %" for run in drawn)
    return finish(
        figure,
        "knn-while-training",
        "k-NN while training",
        f"k-NN accuracy by step; at the end: {last}.",
        "Accuracy on the labelled shards of --knn-shards, with 95 % bootstrap intervals.",
    )


@style()
def plot_losses(log: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Draw a run as a PNG: total loss left, one line per teacher and token kind right, validation as points."""
    records = read_log(log)
    figure, (total, parts) = panels(2, 4.2)
    figure.set_size_inches(11, 4.2)
    _draw(total, [(record, {"loss": record["loss"]}) for record in records], "total loss")
    _draw(parts, [(record, _parts(record)) for record in records], "loss by teacher and token kind")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, facecolor="white", metadata={"Software": None})
    LocalFolder(Path(out).parent).replace(Path(out).name, drawn.getvalue())


def _mean(span: npt.NDArray[np.float64]) -> tuple[float, float]:
    step, value = span.mean(axis=0).tolist()
    return step, value


def _teachers(runs: Sequence[Training]) -> list[str]:
    """The teachers with losses in any run, each once, in the order of the logs."""
    return list(dict.fromkeys(name for run in runs for record in run.records for name in teacher_losses(record)))


def _parts(record: Record) -> dict[str, float]:
    """The loss of each teacher's token kinds."""
    return {f"{name} {kind}": loss for name, own in kind_losses(record).items() for kind, loss in own.items()}


def _draw(axes: "Axes", records: Sequence[tuple[Record, Mapping[str, float]]], title: str) -> None:
    """One line per name in the mappings that go with the log's records."""
    for number, name in enumerate(dict.fromkeys(name for _, losses in records for name in losses)):
        for kind, line in LINES.items():
            points = [(r["step"], losses[name]) for r, losses in records if r["kind"] == kind and name in losses]
            shown = name if kind == TRAIN else f"{name}, held out"
            _plot(axes, points, line, COLOURS[number % len(COLOURS)], shown)
    axes.set(title=title, xlabel="step")
    axes.legend()


def _plot(axes: "Axes", points: Points, line: str, colour: str, name: str) -> None:
    if points:
        axes.plot(*zip(*points, strict=True), line, color=colour, label=name, markersize=3.5, linewidth=1.2)
