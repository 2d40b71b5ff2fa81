"""One progress line for every stage: done of total, rate, time left, and a note; silent where nobody looks."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

console = Console(stderr=True)


class Progress:
    """A bar on a terminal's stderr; elsewhere one line at the end."""

    def __init__(self, label: str, total: int, unit: str, done: int = 0) -> None:
        self.label = label
        self.unit = unit
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(label, total=total, completed=done, note="", rate="")

    def advance(self, count: int) -> None:
        """`count` more units are done."""
        self._bar.advance(self._task, count)
        speed = self._bar.tasks[0].speed
        if speed:
            self._bar.update(self._task, rate=f"{speed:,.1f} {self.unit}/s")

    def note(self, text: str) -> None:
        """Say something at the end of the line."""
        self._bar.update(self._task, note=text)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
