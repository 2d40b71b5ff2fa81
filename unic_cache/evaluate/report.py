"""A run's log, and the plot of its losses."""

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unic_cache.errors import ConfigError
from unic_cache.files.local import LocalFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = {"train": "-", "val": "o"}
SHARES = {"coefficient", "top"}  # logged per teacher beside its losses


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
