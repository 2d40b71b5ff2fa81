"""What several workers say becomes one output."""

from pipelines.command import progress
from pipelines.command.relay import Relay


def test_lines_are_said_once_and_the_works_of_all_are_one(monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_LINE", 1e9)
    shown = []
    monkeypatch.setattr(progress.Progress, "advance", lambda self, count: shown.append((self.label, self.total, count)))
    with Relay() as relay:
        for event in (
            ("say", "hello"),
            ("begin", "calibrate", 60, "images", 0),
            ("say", "hello"),
            ("advance", "calibrate", 60),
            ("end", "calibrate"),
            ("begin", "extract", 10, "images", 0),
            ("begin", "extract", 30, "images", 5),
            ("advance", "extract", 7),
            ("end", "extract"),
            ("begin", "copy", 4, "rows", 0),  # not shown as long as another still extracts
            ("advance", "copy", 1),
            ("advance", "extract", 2),
            ("end", "extract"),
            ("advance", "copy", 3),
            ("end", "copy"),
        ):
            relay.hear(event)
    assert capsys.readouterr().err == "hello\n"
    works = [("calibrate", 60, 60), ("extract", 40, 5), ("extract", 40, 7), ("extract", 40, 2), ("copy", 4, 3)]
    assert shown == works
