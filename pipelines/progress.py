"""One progress line for every stage: done of total, rate, time left, and a note. In a log, a line now and then."""

import time
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

LOG_EVERY = 30.0  # seconds between two lines where stderr is no terminal

console = Console(stderr=True, soft_wrap=True)


class Progress:
    """A bar on a terminal's stderr; elsewhere, as under a batch system, a line every half minute."""

    def __init__(self, label: str, total: int, unit: str, done: int = 0, quiet: bool = False) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.quiet = quiet
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task(label, total=total, completed=done, note="", rate="")
        self._note = ""
        self._first, self._done = done, done
        self._began = self._told = time.monotonic()

    def advance(self, count: int) -> None:
        """`count` more units are done."""
        self._done += count
        self._bar.advance(self._task, count)
        speed = self._bar.tasks[0].speed
        if speed:
            self._bar.update(self._task, rate=f"{speed:,.1f} {self.unit}/s")
        if not self.quiet and not console.is_terminal and time.monotonic() - self._told >= LOG_EVERY:
            self._tell()

    def note(self, text: str) -> None:
        """Say something at the end of the line."""
        self._note = text
        self._bar.update(self._task, note=text)

    def _tell(self) -> None:
        self._told = time.monotonic()
        rate = (self._done - self._first) / max(self._told - self._began, 1e-9)
        left = timedelta(seconds=round((self.total - self._done) / max(rate, 1e-9)))
        line = f"{self.label} {self._done:,}/{self.total:,} {self.unit}, {rate:,.1f}/s, {left} left"
        console.print(f"{line}, {self._note}" if self._note else line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
