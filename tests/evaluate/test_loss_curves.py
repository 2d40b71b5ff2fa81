"""The log and its picture."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unic_cache.errors import ConfigError
from unic_cache.evaluate.curves import plot_losses
from unic_cache.evaluate.run_log import read_log


def record(kind: str, step: int, loss: float) -> dict[str, Any]:
    teachers = {
        "dino": {"cls": loss, "patch": loss / 2, "coefficient": 0.6, "top": 0.7},
        "lite": {"patch": loss / 3, "coefficient": 0.5, "top": 0.3},
    }
    return {"kind": kind, "step": step, "loss": loss, "teachers": teachers}


def write(path: Path, records: list[dict[str, Any]], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in records) + tail)
    return path


def test_plot_draws_every_teacher_type_and_validation_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[tuple[str, int]] = []
    original = Axes.plot

    def counted(self: Axes, steps: Any, *arguments: Any, **options: Any) -> Any:
        drawn.append((options["label"], len(steps)))
        return original(self, steps, *arguments, **options)

    monkeypatch.setattr(Axes, "plot", counted)
    records = [record("train", step, 1 / step) for step in range(1, 6)] + [record("val", 5, 0.3)]
    out = tmp_path / "loss.png"
    plot_losses(write(tmp_path / "log.jsonl", records), out)
    assert drawn == [
        ("loss", 5),
        ("loss, held out", 1),
        ("dino cls", 5),
        ("dino cls, held out", 1),
        ("dino patch", 5),
        ("dino patch, held out", 1),
        ("lite patch", 5),
        ("lite patch, held out", 1),
    ]
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert image.width > image.height > 300


def test_plot_of_equal_logs_is_equal_to_the_byte(tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", [record("train", 1, 1.0), record("train", 2, 0.5)])
    for name in ("a.png", "b.png"):
        plot_losses(log, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_log_keeps_the_resumed_run_and_passes_over_half_a_line(tmp_path: Path) -> None:
    records = [record("train", 1, 1.0), record("train", 2, 0.9), {"kind": "start", "step": 1}, record("train", 2, 0.8)]
    log = write(tmp_path / "log.jsonl", records, tail='{"kind": "train", "st')
    assert [(item["step"], item["loss"]) for item in read_log(log)] == [(1, 1.0), (2, 0.8)]


def test_logs_without_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"log\.jsonl: no such log; `unic-cache distill` writes it"):
        plot_losses(tmp_path / "log.jsonl", tmp_path / "loss.png")
    (tmp_path / "log.jsonl").write_text("3\nnonsense\n")
    with pytest.raises(ConfigError, match="no training or validation records in it yet"):
        plot_losses(tmp_path / "log.jsonl", tmp_path / "loss.png")


def test_matplotlib_is_imported_only_to_plot() -> None:
    script = "import sys, unic_cache.evaluate.curves; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
