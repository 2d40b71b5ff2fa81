"""What a person looks at: the table of encoders and the picture of a run's losses."""

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from unic_cache.errors import ConfigError
from unic_cache.evaluate.knn import Interval
from unic_cache.files.local import LocalFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = {"teacher": "cyan", "student": "bold green", "random student": "dim"}  # and the colour of their rows
STYLES = {"train": "-", "val": "o"}
Lines = dict[str, list[tuple[int, float]]]  # a line's name -> (step, loss)


@dataclass(frozen=True)
class Row:
    """One encoder's line in the table."""

    name: str
    kind: str  # teacher, student or random student
    dim: int  # channels of its feature
    accuracy: Interval  # share of test images that k-NN classifies correctly
    over_random: Interval | None = None  # paired difference to the random student


def result_table(rows: Sequence[Row], title: str) -> Table:
    """The rows in the order given: accuracy and its gain over the random student, in percent.

    Both have their 95% interval. The gain is paired, image by image, so its interval is narrower than those of two
    accuracies suggest.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("encoder", overflow="fold")
    for heading in ("dim", "k-NN % (95%)", "over random (95%)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        name = f"teacher {row.name}" if row.kind == "teacher" else row.name
        table.add_row(name, str(row.dim), _percent(row.accuracy), _percent(row.over_random, "+"), style=KINDS[row.kind])
    return table


def _percent(found: Interval | None, sign: str = "-") -> str:
    if found is None:
        return ""
    return f"{100 * found.mean:{sign}.1f} ({100 * found.low:.1f}..{100 * found.high:.1f})"


def read_log(log: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The log's records sorted by step, training before validation; where a run was resumed, the later one of a step.

    Lines that a killed run left half written are passed over. ConfigError where there is no file or no record in it.
    """
    path = Path(log)
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such log; `unic-cache distill` writes it into the run's folder")
    records: dict[tuple[int, str], dict[str, Any]] = {}
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            if record["kind"] in {"train", "val"} and isinstance(record["loss"], float):
                records[int(record["step"]), record["kind"]] = record
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    if not records:
        raise ConfigError(f"{path}: there are no training or validation records in it yet")
    return [records[key] for key in sorted(records)]


def plot_losses(log: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """A PNG of the run: the total loss left, one line a teacher and token type right, validation as points."""
    from matplotlib.figure import Figure

    records = read_log(log)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    total, parts = figure.subplots(1, 2)
    _draw(total, {kind: _total(records, kind) for kind in ("train", "val")}, "total loss")
    _draw(parts, {kind: _parts(records, kind) for kind in ("train", "val")}, "loss by teacher and token type")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, metadata={"Software": None})
    LocalFolder(Path(out).parent).replace(Path(out).name, drawn.getvalue())


def _total(records: Sequence[dict[str, Any]], kind: str) -> Lines:
    points = [(int(record["step"]), float(record["loss"])) for record in records if record["kind"] == kind]
    return {"loss": points} if points else {}


def _parts(records: Sequence[dict[str, Any]], kind: str) -> Lines:
    lines: Lines = {}
    for record in records:
        for teacher, values in record.get("teachers", {}).items() if record["kind"] == kind else ():
            for token in ("cls", "patch"):
                if token in values:
                    lines.setdefault(f"{teacher} {token}", []).append((int(record["step"]), float(values[token])))
    return lines


def _draw(axes: "Axes", lines: dict[str, Lines], title: str) -> None:
    names = list(dict.fromkeys(name for kind in lines.values() for name in kind))
    for number, name in enumerate(names):
        colour = f"C{number % 10}"
        for kind, style in STYLES.items():
            points = lines[kind].get(name, [])
            if points:
                label = name if kind == "train" else f"{name}, held out"
                axes.plot(*zip(*points, strict=True), style, color=colour, label=label, markersize=4, linewidth=1.2)
    axes.set(title=title, xlabel="step")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
