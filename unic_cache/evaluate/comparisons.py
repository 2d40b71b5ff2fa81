"""Figures of evaluations: gains over the best teacher, one task against another, and the tables of all tasks."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from unic_cache.evaluate.bootstrap import Interval
from unic_cache.evaluate.drawing import COLOURS, HALF, INK, Picture, finish, label, legend, panels, style
from unic_cache.evaluate.page import Grid
from unic_cache.evaluate.results import RANDOM, STUDENT, TEACHER, Evaluation, TaskResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLES = {
    "knn": "k-NN",
    "linear": "linear probe",
    "retrieval": "retrieval",
    "segmentation": "segmentation",
    "depth": "depth",
}
MARKERS = {TEACHER: "s", STUDENT: "o"}  # in task against task; others get a diamond


@style()
def gain_figure(evaluations: Sequence[Evaluation]) -> Picture | None:
    """The gain of every student over the best teacher of each task, in percent (UNIC's Figure 2); None without any."""
    gains = [
        (task, named(one, encoder, evaluations), gain)
        for one in evaluations
        for task, result in one.tasks.items()
        for encoder, (_, gain) in result.gains.items()
        if encoder in result.scores and result.scores[encoder].kind not in {RANDOM, TEACHER}
    ]
    if not gains:
        return None
    tasks = list(dict.fromkeys(task for task, _, _ in gains))
    names = list(dict.fromkeys(name for _, name, _ in gains))
    figure, (axes,) = panels(1, 1.2 + 0.28 * len(tasks) * max(len(names), 2))
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        own = [(tasks.index(task), gain) for task, encoder, gain in gains if encoder == name]
        places = [place - 0.4 + height * (number + 0.5) for place, _ in own]
        colour = COLOURS[number % len(COLOURS)]
        axes.barh(places, [gain.mean for _, gain in own], height * 0.85, color=colour, label=label(name))
        for place, (_, gain) in zip(places, own, strict=True):
            axes.plot([gain.low, gain.high], [place, place], color=INK, linewidth=1.2)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(tasks)), [title(task) for task in tasks])
    axes.invert_yaxis()
    axes.set_xlabel("gain over the task's best teacher, %")
    legend(figure, [axes])
    listed = "; ".join(f"{name} on {title(task)} {gain.mean:+.1f} %" for task, name, gain in gains)
    return finish(
        figure,
        "gains",
        "Gain over the best teacher of each task",
        f"Bars of the relative gain over the best teacher: {listed}.",
        "Relative to the best teacher of each task, positive is better also where a lower value is (UNIC's Figure 2); "
        f"lines: 95 % bootstrap intervals over test images. Best teachers: {_best_teachers(evaluations, tasks)}.",
    )


@style()
def task_figure(evaluations: Sequence[Evaluation]) -> Picture | None:
    """One task against the others, a point per encoder (UNIC's Figure 6); None unless a student has two tasks."""
    tasks = list(
        dict.fromkeys(
            name
            for one in evaluations
            for name, result in one.tasks.items()
            if any(score.kind == STUDENT for score in result.scores.values())
        )
    )
    if len(tasks) < 2:
        return None
    first, others = tasks[0], tasks[1:]
    points = {other: list(_points(evaluations, first, other)) for other in others}
    others = [other for other in others if any(kind == STUDENT for _, kind, *_ in points[other])]
    if not others:
        return None
    ranked = sorted((point for other in others for point in points[other]), key=lambda point: point[1] == TEACHER)
    names = list(dict.fromkeys(point[0] for point in ranked))
    figure, axes = panels(len(others), 3.0)
    units = {name: next(one.tasks[name] for one in evaluations if name in one.tasks) for name in tasks}
    for own, other in zip(axes, others, strict=True):
        for name, kind, across, up in points[other]:
            _point(own, label(name), COLOURS[names.index(name) % len(COLOURS)], MARKERS.get(kind, "D"), across, up)
        own.set(xlabel=label(_axis(first, units[first]), HALF), ylabel=label(_axis(other, units[other]), HALF))
    legend(figure, axes)
    return finish(
        figure,
        "task-against-task",
        "Task against task",
        f"{title(first)} against {', '.join(title(other) for other in others)}, a point for each of "
        f"{', '.join(names)}.",
        "Squares: teachers; circles: students; lines: 95 % intervals (UNIC's Figure 6). Random students are left out.",
    )


def score_tables(one: Evaluation) -> Iterator[Grid]:
    """The table of an evaluation, encoders by tasks; then all its metrics, and the classes where they are known."""
    encoders = list(dict.fromkeys(name for result in one.tasks.values() for name in result.scores))
    kinds = {name: score.kind for result in one.tasks.values() for name, score in result.scores.items()}
    rows = [
        [_described(name, kinds[name])]
        + [
            _scored(result.scores[name].estimate, result.unit) if name in result.scores else ""
            for result in one.tasks.values()
        ]
        for name in encoders
    ]
    head = ["encoder", *(_heading(task, result) for task, result in one.tasks.items())]
    images = ", ".join(f"{title(task)} {result.images:,}" for task, result in one.tasks.items())
    yield Grid(f"{one.label}, with 95 % intervals; test images: {images}", head, rows)
    for task, result in one.tasks.items():
        metrics = list(dict.fromkeys(name for score in result.scores.values() for name in score.metrics))
        if len(metrics) > 1:
            rows = [
                [name, *(_bare(score.metrics[metric]) if metric in score.metrics else "" for metric in metrics)]
                for name, score in result.scores.items()
            ]
            yield Grid(f"{one.label}: all metrics of {title(task)}", ["encoder", *metrics], rows, folded=True)
        yield from _class_table(one, task, result)


def _best_teachers(evaluations: Sequence[Evaluation], tasks: Sequence[str]) -> str:
    best = {
        task: dict.fromkeys(
            over for one in evaluations if task in one.tasks for over, _ in one.tasks[task].gains.values()
        )
        for task in tasks
    }
    return "; ".join(f"{title(task)}: {', '.join(names)}" for task, names in best.items())


def title(task: str) -> str:
    """A task as text names it."""
    return TITLES.get(task, task)


def named(one: Evaluation, encoder: str, among: Sequence[Evaluation]) -> str:
    """An encoder's name, with its file's where there are several."""
    return encoder if len(among) == 1 else f"{one.label}: {encoder}"


def _points(evaluations: Sequence[Evaluation], first: str, other: str) -> Iterator[tuple[str, str, Interval, Interval]]:
    """(name, kind, x, y) of encoders with both tasks, but random ones; a teacher that two files have alike, once."""
    seen: set[tuple[str, float, float]] = set()
    for one in evaluations:
        if first in one.tasks and other in one.tasks:
            across, up = one.tasks[first], one.tasks[other]
            for name in across.scores:
                if name not in up.scores or across.scores[name].kind == RANDOM:
                    continue
                x, y = _scaled(across, name), _scaled(up, name)
                is_teacher = across.scores[name].kind == TEACHER
                if is_teacher and (name, x.mean, y.mean) in seen:
                    continue
                seen.add((name, x.mean, y.mean))
                shown = name if is_teacher else named(one, name, evaluations)
                yield shown, across.scores[name].kind, x, y


def _scaled(result: TaskResult, name: str) -> Interval:
    factor = 100 if result.unit == "%" else 1
    found = result.scores[name].estimate
    return Interval(factor * found.mean, factor * found.low, factor * found.high)


def _point(axes: "Axes", name: str, colour: str, marker: str, across: Interval, up: Interval) -> None:
    axes.plot([across.low, across.high], [up.mean, up.mean], color=colour, alpha=0.5, linewidth=1)
    axes.plot([across.mean, across.mean], [up.low, up.high], color=colour, alpha=0.5, linewidth=1)
    axes.plot([across.mean], [up.mean], marker, color=colour, label=name, markersize=6)


def _axis(task: str, result: TaskResult) -> str:
    better = "" if result.higher_is_better else " (lower is better)"
    unit = f", {result.unit}" if result.unit else ""
    return f"{title(task)}: {result.metric}{unit}{better}"


def _heading(task: str, result: TaskResult) -> str:
    arrow = "↑" if result.higher_is_better else "↓"
    return f"{title(task)}, {result.metric}{f' {result.unit}' if result.unit else ''} {arrow}"


def _described(name: str, kind: str) -> str:
    return name if kind in {name, STUDENT} else f"{name} ({kind})"


def _scored(found: Interval, unit: str) -> str:
    if unit == "%":
        return f"{100 * found.mean:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"
    return _bare(found)


def _bare(found: Interval) -> str:
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"


def _class_table(one: Evaluation, task: str, result: TaskResult) -> Iterator[Grid]:
    classes = sorted({number for score in result.scores.values() for number in score.per_class})
    if not classes:
        return
    names = [name for name, score in result.scores.items() if score.per_class]
    rows = [
        [str(number)]
        + [
            f"{100 * result.scores[name].per_class[number]:.1f}" if number in result.scores[name].per_class else ""
            for name in names
        ]
        for number in classes
    ]
    yield Grid(f"{one.label}: {title(task)} by class, {result.metric} %", ["class", *names], rows, folded=True)
