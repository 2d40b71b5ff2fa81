"""Figures of `evaluate --analysis`: dimensions that features span, and how much of weights and features is used."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unic_cache.evaluate.comparisons import named
from unic_cache.evaluate.drawing import COLOURS, Picture, finish, label, legend, panels, style
from unic_cache.evaluate.results import Analysis, Curve, Evaluation, Use

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEATURES = {"summary": "summary (CLS)", "patches": "patch tokens"}


def analysed(evaluations: Sequence[Evaluation]) -> dict[str, Analysis]:
    """Every encoder's analysis, by its name in figures; one that several files have alike, once."""
    found: dict[str, Analysis] = {}
    for one in evaluations:
        for encoder, analysis in one.analysis.items():
            if encoder not in found or found[encoder] != analysis:
                found[encoder if encoder not in found else named(one, encoder, evaluations)] = analysis
    return found


def _with(keys: Iterable[str], evaluations: Sequence[Evaluation]) -> dict[str, dict[str, Any]]:
    """{key: {encoder: the part of its analysis that has this name}}; keys that no encoder has are left out."""
    each = analysed(evaluations).items()
    found = {key: {name: part for name, one in each if (part := getattr(one, key)) is not None} for key in keys}
    return {key: parts for key, parts in found.items() if parts}


@style()
def dimension_figure(evaluations: Sequence[Evaluation]) -> Picture | None:
    """Principal dimensions that hold 90, 95 and 99 % of the variance, a panel per feature; None without analysis."""
    found = _with(FEATURES, evaluations)
    if not found:
        return None
    figure, axes = panels(len(found), 1.2 + 0.36 * max(map(len, found.values())), most=1)
    for own, (key, uses) in zip(axes, found.items(), strict=True):
        _bars(own, uses)
        own.set(title=FEATURES[key], xlabel="principal dimensions")
    legend(figure, axes)
    listed = "; ".join(
        f"{name} {FEATURES[key]}: effective rank {use.effective_rank:.1f} of {use.channels} channels"
        for key, uses in found.items()
        for name, use in uses.items()
    )
    return finish(
        figure,
        "principal-dimensions",
        "Dimensions that the features span",
        f"Bars of the principal dimensions that hold 90, 95 and 99 % of the variance. {listed}.",
        "Of the features of all images, training and test. Beside each name: the effective rank of all channels.",
    )


@style()
def curve_figure(evaluations: Sequence[Evaluation]) -> Picture | None:
    """Accuracy after pruning and with few principal components, a panel each; None without such analysis."""
    panelled = {
        "pruning": "smallest weights set to zero, %",
        "components": "principal components kept",
    }
    found = _with(panelled, evaluations)
    if not found:
        return None
    figure, axes = panels(len(found), 2.8)
    names = list(dict.fromkeys(name for curves in found.values() for name in curves))
    for own, (key, curves) in zip(axes, found.items(), strict=True):
        for name, curve in curves.items():
            colour = COLOURS[names.index(name) % len(COLOURS)]
            heights = [100 * value for value in curve.points.values()]
            own.plot(list(curve.points), heights, "o-", color=colour, label=label(name), markersize=3.5, linewidth=1.2)
        if key == "components":
            _powers_of_two(own, curves)
        metrics = ", ".join(sorted({curve.metric for curve in curves.values()}))
        own.set(xlabel=panelled[key], ylabel=f"{metrics}, %")
    legend(figure, axes)
    return finish(
        figure,
        "weight-and-feature-use",
        "Use of weights and of features",
        f"Accuracy over {' and over '.join(panelled[key] for key in found)}, for {', '.join(names)}.",
        "How far accuracy falls tells how much of the encoder is used: weights by magnitude, features by variance.",
    )


def _bars(axes: "Axes", uses: Mapping[str, Use]) -> None:
    for place, use in enumerate(uses.values()):
        for percent, number in sorted(use.dimensions.items(), reverse=True):
            shade = COLOURS[sorted(use.dimensions).index(percent) % len(COLOURS)]
            axes.barh(place, number, 0.7, color=shade, label=f"{percent} % of the variance")
            axes.text(number, place, f" {number}", va="center", fontsize=7)
    named = [f"{label(name, 24)}\nrank {use.effective_rank:.1f} of {use.channels}" for name, use in uses.items()]
    axes.set_yticks(range(len(uses)), named)
    axes.invert_yaxis()


def _powers_of_two(axes: "Axes", curves: Mapping[str, Curve]) -> None:
    """A logarithmic axis with the powers of two as ticks; an encoder's own width lies between two of them."""
    ticks = sorted({number for curve in curves.values() for number in curve.points if number & (number - 1) == 0})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(number) for number in ticks], rotation=45)
    axes.minorticks_off()
