"""Progress in a log, where there is no terminal to draw on."""

import io
import threading

import pytest
from rich.console import Console

from pipelines.command import progress


@pytest.fixture
def log(monkeypatch):
    """(clock, what is written), with no thread that watches."""
    clock, out = [100.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress, "console", Console(file=out, width=80))
    monkeypatch.setattr(progress.Progress, "_keep_watching", lambda bar: None)
    return clock, out


def test_a_log_gets_a_line_every_half_minute_with_rate_and_time_left(log):
    clock, out = log
    with progress.Progress("extract", total=4000, unit="images", done=1000) as bar:
        for _ in range(4):
            clock[0] += 20
            bar.advance(500)
            bar.note("12 MB kept")
    assert out.getvalue().splitlines() == [
        "extract 2,000/4,000 images, 25.0/s, 0:01:20 left, 12 MB kept",
        "extract 3,000/4,000 images, 25.0/s, 0:00:40 left, 12 MB kept",
    ]


def test_the_first_line_comes_soon_though_the_first_batch_takes_long(log):
    clock, out = log
    with progress.Progress("distill", total=640, unit="images") as bar:
        for _ in range(8):
            clock[0] += 6
            bar.watch()
        bar.advance(64)
        clock[0] += 30
        bar.watch()
    assert out.getvalue().splitlines() == [
        "distill 0/640 images, 0:00:06 since it began",
        "distill 0/640 images, 0:00:36 since it began",
        "distill 64/640 images, 0.8/s, 0:11:42 left",
    ]


def test_the_watching_thread_ends_with_the_bar(monkeypatch):
    monkeypatch.setattr(progress, "console", Console(file=io.StringIO(), width=80))
    with progress.Progress("verify", total=2, unit="units"):
        assert "progress" in {thread.name for thread in threading.enumerate()}
    assert "progress" not in {thread.name for thread in threading.enumerate()}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("quiet", "out", "logs"),
    [(True, io.StringIO(), False), (False, Terminal(), False), (False, io.StringIO(), True)],
)
def test_only_a_file_gets_a_log_whatever_colours_are_forced(monkeypatch, quiet, out, logs):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(progress, "console", Console(file=out, width=80))
    with progress.Progress("plan", total=2, unit="units", quiet=quiet):
        assert ("progress" in {thread.name for thread in threading.enumerate()}) == logs


def test_a_long_start_is_told_until_the_command_says_what_it_does(monkeypatch):
    out, told = io.StringIO(), threading.Event()
    monkeypatch.setattr(progress.time, "monotonic", lambda: 100.0)
    monkeypatch.setattr(progress, "console", Console(file=out, width=200))
    monkeypatch.setattr(progress, "FIRST_LINE", 0.0)
    honest = progress.say
    monkeypatch.setattr(progress, "say", lambda text: (honest(text), told.set()))
    with progress.starting("extract"):
        assert told.wait(30)
        progress.begins("extract", "dino on cpu", "", "batch 64")
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("extract: still loading, 0 s since it began")
    assert lines[-1] == "extract: dino on cpu, batch 64"
