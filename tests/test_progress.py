"""Progress in a log, where there is no terminal to draw on."""

import io

from rich.console import Console

from pipelines import progress


def test_a_log_gets_a_line_every_half_minute_with_rate_and_time_left(monkeypatch):
    clock, out = [100.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress, "console", Console(file=out, width=80))
    with progress.Progress("extract", total=4000, unit="images", done=1000) as bar:
        for _ in range(4):
            clock[0] += 20
            bar.advance(500)
            bar.note("12 MB kept")
    assert out.getvalue().splitlines() == [
        "extract 2,000/4,000 images, 25.0/s, 0:01:20 left, 12 MB kept",
        "extract 3,000/4,000 images, 25.0/s, 0:00:40 left, 12 MB kept",
    ]
