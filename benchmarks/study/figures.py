"""The study's figures, drawn from the lines: the same lines give the same bytes."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.study.measure import ALL_KNN, MEAN
from benchmarks.study.results import Line
from benchmarks.study.runs import F16, ONLINE, STARTS
from benchmarks.study.verdicts import MARGINS
from unic_cache.evaluate.drawing import COLOURS, INK, Picture, finish, legend, panels, style

LOSS = "loss-images/mean"
SERIES = {
    "bits": "klt, all tokens",
    "cls": "klt, CLS coded too",
    "random": "f16, random tokens",
    "lattice": "f16, lattice",
}

Runs = Mapping[str, Sequence[Line]]


def figures(runs: Runs) -> list[Picture]:
    """Those figures that have data."""
    drawn = (bytes_against_loss(runs), views_against_loss(runs), gains(runs))
    return [one for one in drawn if one is not None]


@style()
def bytes_against_loss(runs: Runs) -> Picture | None:
    """Bytes of a view against the held-out loss, all views of the online run."""
    points = [
        (line, found)
        for line, found in compared(runs)
        if line.settings["distill"]["views"] == line.settings["images"]["views"]
    ]
    if not points:
        return None
    figure, (axes,) = panels(1, 3.2)
    kinds = list(dict.fromkeys(series(line) for line, _ in points))
    for number, kind in enumerate(kinds):
        own = [(line.figures["bytes"]["view"], found) for line, found in points if series(line) == kind]
        draw(axes, own, COLOURS[number], SERIES[kind])
    band(axes)
    axes.set_xscale("log")
    axes.set_xlabel("bytes of features per view, all teachers")
    axes.set_ylabel("held-out loss against online, % better")
    legend(figure, [axes])
    listed = "; ".join(
        f"{line.run} {line.figures['bytes']['view']:,.0f} B {found['value']:+.2f} %" for line, found in points
    )
    return finish(
        figure,
        "bytes-loss",
        "Bytes against loss",
        f"Held-out loss against bytes per view: {listed}.",
        "Loss on images never seen, against float16 targets, as a difference from online; every seed with its 95 % "
        "interval. The band is the margin.",
    )


@style()
def views_against_loss(runs: Runs) -> Picture | None:
    """Number of views against the held-out loss, in float16."""
    points = [
        (line, found)
        for line, found in compared(runs)
        if line.settings["cache"]["codec"] == F16 and line.settings["cache"]["tokens"] is None
    ]
    if not points:
        return None
    figure, (axes,) = panels(1, 3.0)
    draw(axes, [(line.settings["distill"]["views"], found) for line, found in points], COLOURS[0], "f16, all tokens")
    band(axes)
    axes.set_xscale("log", base=2)
    ticks = sorted({line.settings["distill"]["views"] for line, _ in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("views in the cache, through which training cycles")
    axes.set_ylabel("held-out loss against online, % better")
    numbers = [(line.settings["distill"]["views"], found["value"]) for line, found in points]
    listed = "; ".join(f"{views} {'view' if views == 1 else 'views'} {value:+.2f} %" for views, value in numbers)
    return finish(
        figure,
        "views-loss",
        "Views against loss",
        f"Held-out loss against the number of views: {listed}.",
        "As above, with a new view in each epoch as the reference.",
    )


@style()
def gains(runs: Runs) -> Picture | None:
    """The claim's students over the best teacher of each measure."""
    names = [name for name in STARTS if name in runs]
    teachers = [name for name in runs if name.startswith("teachers/")]
    if not names or not teachers:
        return None
    measures = [
        one for one in runs[names[0]][0].figures["scores"] if not one.startswith("loss") and one not in {ALL_KNN, MEAN}
    ]
    figure, (axes,) = panels(1, 1.0 + 0.22 * len(measures) * len(names))
    listed = []
    for number, name in enumerate(names):
        for place, measure in enumerate(measures):
            best = max(teachers, key=lambda one: runs[one][0].figures["scores"][measure]["value"])
            pairs = [line.figures["differences"][best][measure] for line in runs[name]]
            value, at = fmean(one["value"] for one in pairs), place + 0.8 * ((number + 0.5) / len(names) - 0.5)
            axes.barh(at, value, 0.7 / len(names), color=COLOURS[number], label=name)
            axes.plot([min(o["low"] for o in pairs), max(o["high"] for o in pairs)], [at, at], color=INK, linewidth=1.0)
            listed.append(f"{name} on {measure} {value:+.1f}")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(measures)), measures)
    axes.invert_yaxis()
    axes.set_xlabel("points over the measure's best teacher")
    legend(figure, [axes])
    return finish(
        figure,
        "gains",
        "Gain over the best teacher",
        f"Bars of the difference from the best teacher: {'; '.join(listed)}.",
        "Means over seeds; the lines reach from the lowest to the highest end of the seeds' 95 % intervals.",
    )


def compared(runs: Runs) -> list[tuple[Line, dict[str, float]]]:
    """Every cache run of every seed with its difference from online, where it has one."""
    return [
        (line, line.figures["differences"][ONLINE][LOSS])
        for name, lines in runs.items()
        if name.startswith("cache/") and name != ONLINE
        for line in lines
    ]


def series(line: Line) -> str:
    """What a run changes."""
    kept = line.settings["cache"]
    if kept.get("cls_quality") is not None:
        return "cls"
    return "bits" if kept["codec"] != F16 else str(kept["sampling"])


def draw(axes: Any, points: Sequence[tuple[float, dict[str, float]]], colour: str, label: str) -> None:
    """Points with their intervals, joined by a line through their means."""
    for x, found in points:
        axes.plot([x, x], [found["low"], found["high"]], color=colour, linewidth=1.0)
    axes.plot(
        [x for x, _ in points], [found["value"] for _, found in points], "o", color=colour, markersize=4, label=label
    )
    places = sorted({x for x, _ in points})
    means = [fmean(found["value"] for x, found in points if x == place) for place in places]
    axes.plot(places, means, color=colour, linewidth=0.8, alpha=0.6)


def band(axes: Any) -> None:
    """The margin around the reference."""
    axes.axhspan(-MARGINS["loss"], MARGINS["loss"], color=INK, alpha=0.08, linewidth=0)
    axes.axhline(0, color=INK, linewidth=0.8)
