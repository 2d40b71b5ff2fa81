"""Results for people: the table of encoders and the plot of a run's losses."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from unic_cache.errors import ConfigError
from unic_cache.evaluate.bootstrap import Interval
from unic_cache.files.local import LocalFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STYLES = {"teacher": "cyan", "student": "bold green", "random student": "dim"}  # of the table's rows
LINES = {"train": "-", "val": "o"}
SHARES = {"coefficient", "top"}  # logged per teacher beside its losses


@dataclass(frozen=True)
class Encoder:
    """One encoder's k-NN results."""

    name: str
    kind: str  # teacher, student or random student
    dim: int  # channels of its feature
    accuracy: Mapping[int, Interval]  # k -> share of the test images that are classified correctly
    over_random: Interval | None  # paired difference to the random student, at the table's k


def result_table(encoders: Sequence[Encoder], k: int, title: str) -> Table:
    """The encoders in the order given: accuracy at `k` and its gain over the random student, in percent.

    Both have 95% intervals. The gain is paired, image by image, so its interval is narrower than those of two
    accuracies suggest.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("encoder", overflow="fold")
    for heading in ("dim", "k-NN % (95%)", "over random (95%)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in encoders:
        name = f"teacher {one.name}" if one.kind == "teacher" else one.name
        numbers = str(one.dim), _percent(one.accuracy[k]), _percent(one.over_random, "+")
        table.add_row(name, *numbers, style=STYLES[one.kind])
    return table


def _percent(found: Interval | None, sign: str = "-") -> str:
    if found is None:
        return ""
    return f"{100 * found.mean:{sign}.1f} ({100 * found.low:.1f}..{100 * found.high:.1f})"


def read_log(log: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The log's records sorted by step, training before validation; of a step logged twice, the later record.

    Skips lines that a killed run left half written. ConfigError if there is no file, or no record in it.
    """
    path = Path(log)
    if not path.is_file():
        raise ConfigError(f"{path}: no such log; `unic-cache distill` writes it into the run's folder")
    records: dict[tuple[int, str], dict[str, Any]] = {}
    for line in path.read_text(errors="replace").splitlines():
        try:
            record = json.loads(line)
            if record["kind"] in {"train", "val"} and isinstance(record["loss"], float):
                records[int(record["step"]), record["kind"]] = record
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    if not records:
        raise ConfigError(f"{path}: no training or validation records in it yet")
    return [records[key] for key in sorted(records)]


def plot_losses(log: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Draw a run as a PNG: total loss left, one line per teacher and token kind right, validation as points."""
    from matplotlib.figure import Figure

    records = read_log(log)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    total, parts = figure.subplots(1, 2)
    _draw(total, [(record, {"loss": record["loss"]}) for record in records], "total loss")
    _draw(parts, [(record, _parts(record)) for record in records], "loss by teacher and token kind")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, metadata={"Software": None})
    LocalFolder(Path(out).parent).replace(Path(out).name, drawn.getvalue())


def _parts(record: Mapping[str, Any]) -> dict[str, float]:
    """The loss of each teacher's token kinds."""
    teachers = record.get("teachers", {}).items()
    return {f"{name} {kind}": loss for name, own in teachers for kind, loss in own.items() if kind not in SHARES}


def _draw(axes: "Axes", records: Sequence[tuple[Mapping[str, Any], Mapping[str, float]]], title: str) -> None:
    """One line per name in the mappings that go with the log's records."""
    for number, name in enumerate(dict.fromkeys(name for _, losses in records for name in losses)):
        for kind, style in LINES.items():
            points = [(r["step"], losses[name]) for r, losses in records if r["kind"] == kind and name in losses]
            if points:
                label, colour = name if kind == "train" else f"{name}, held out", f"C{number % 10}"
                axes.plot(*zip(*points, strict=True), style, color=colour, label=label, markersize=4, linewidth=1.2)
    axes.set(title=title, xlabel="step")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
