"""Results for people: one table of encoders and tasks, and one of gains over the best teacher of each task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from unic_cache.evaluate.bootstrap import Interval

STYLES = {"teacher": "cyan", "network": "blue", "student": "bold green", "random student": "dim"}  # of rows


@dataclass(frozen=True)
class Neighbours:
    """One encoder's k-NN results."""

    name: str
    kind: str  # teacher, network, student or random student
    dim: int  # channels of its feature
    accuracy: Mapping[int, Interval]  # k -> share of the test images that are classified correctly
    over_random: Interval | None  # paired difference to the random student, at the table's k


@dataclass(frozen=True)
class Score:
    """One encoder's metrics in a task; the first is the task's own."""

    kind: str
    metrics: Mapping[str, Interval]
    per_class: Mapping[int, float] | None = None


@dataclass(frozen=True)
class TaskResult:
    """A task's scores, and what they say of pairs of encoders."""

    metric: str
    unit: str  # "%" for shares of 1, else that of the values
    higher_is_better: bool
    images: int
    classes: int
    encoders: Mapping[str, Score]
    pairs: Mapping[tuple[str, str], Interval]  # the first minus the second, on the same images
    best: str | None  # teacher
    gain: Mapping[str, Interval]  # percent over the best teacher


def score_table(
    rows: Sequence[tuple[str, str, str, int]],
    tasks: Mapping[str, TaskResult],
    neighbours: Sequence[Neighbours],
    title: str,
) -> Table:
    """Encoders (name, kind, what it was made from, channels) down, tasks across, each with its 95% interval.

    The last column is k-NN's paired difference to the random student, whose interval is narrower than those of two
    accuracies suggest.
    """
    over_random = {one.name: one.over_random for one in neighbours}
    table = begun(title)
    for heading in ("from", "dim"):
        table.add_column(heading, justify="right" if heading == "dim" else "left", no_wrap=True)
    for task, result in tasks.items():
        table.add_column(f"{task}\n{result.metric} {result.unit}".rstrip(), justify="right", no_wrap=True)
    if any(over_random.values()):
        table.add_column("k-NN\nover random (95%)", justify="right", no_wrap=True)
    for name, kind, made_of, dim in rows:
        found = [result.encoders.get(name) for result in tasks.values()]
        cells = [
            value_text(score.metrics[result.metric], result.unit) if score else "-"
            for score, result in zip(found, tasks.values(), strict=True)
        ]
        if any(over_random.values()):
            over = over_random[name]
            cells.append(f"{100 * over.mean:+.1f} ({100 * over.low:.1f}..{100 * over.high:.1f})" if over else "")
        table.add_row(f"teacher {name}" if kind == "teacher" else name, made_of, str(dim), *cells, style=STYLES[kind])
    return table


def gain_table(rows: Sequence[tuple[str, str, str, int]], tasks: Mapping[str, TaskResult]) -> Table | None:
    """The gain of all but teachers over the best teacher of each task, in percent of it; None without both."""
    compared = {task: result for task, result in tasks.items() if result.best is not None}
    if not compared or all(kind == "teacher" for _, kind, *_ in rows):
        return None
    table = begun("gain over the best teacher, % of its value (95%)")
    for task, result in compared.items():
        table.add_column(f"{task}\nover {result.best}", justify="right", no_wrap=True)
    for name, kind, *_ in rows:
        if kind != "teacher":
            gains = [result.gain.get(name) for result in compared.values()]
            cells = [f"{one.mean:+.1f} ({one.low:.1f}..{one.high:.1f})" if one else "-" for one in gains]
            table.add_row(name, *cells, style=STYLES[kind])
    return table


def begun(title: str) -> Table:
    """A table whose first column is the encoder."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("encoder", overflow="fold")
    return table


def value_text(found: Interval, unit: str) -> str:
    """'46.2 (41.0..51.3)': shares of 1 in percent, other values with three digits."""
    if unit == "%":
        return f"{100 * found.mean:.1f} ({100 * found.low:.1f}..{100 * found.high:.1f})"
    return f"{found.mean:.3f} ({found.low:.3f}..{found.high:.3f})"
