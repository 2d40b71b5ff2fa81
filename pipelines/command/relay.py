"""What several workers say, as one: equal lines once, and the progress of all in one line."""

from collections import Counter
from types import TracebackType
from typing import Self, cast

from pipelines.command.progress import Event, Progress, say, under_way


class Relay:
    """Prints the events of several workers. Of works under way at once, such as calibrating, it shows the first."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._works: dict[str, tuple[int, str, int]] = {}  # label -> (total, unit, done), over all workers
        self._under_way: Counter[str] = Counter()  # label -> workers
        self._shown: Progress | None = None

    def hear(self, event: Event) -> None:
        """Print what a worker has told; see `progress.tell`."""
        kind, *about = event
        under_way()
        if kind == "say" and about[0] not in self._said:
            self._said.add(str(about[0]))
            say(str(about[0]))
        elif kind == "begin":
            label, total, unit, done = cast("tuple[str, int, str, int]", tuple(about))
            before = self._works.get(label, (0, unit, 0))
            self._works[label] = before[0] + total, unit, before[2] + done
            self._under_way[label] += 1
            if self._shown is not None and self._shown.label == label:
                self._shown.expect(total)
                self._shown.advance(done)
        elif kind == "advance":
            label, count = cast("tuple[str, int]", tuple(about))
            total, unit, done = self._works.get(label, (0, "", 0))  # a worker that was lost may have begun it
            self._works[label] = total, unit, done + count
            if self._shown is not None and self._shown.label == label:
                self._shown.advance(count)
        elif kind == "end":
            self._under_way[str(about[0])] -= 1
        self._show()

    def _show(self) -> None:
        """Show the progress of the first work that a worker is at, or none."""
        label = next((label for label, workers in self._under_way.items() if workers > 0), None)
        if self._shown is not None and self._shown.label != label:
            self._close()
        if self._shown is None and label is not None:
            total, unit, done = self._works[label]
            self._shown = Progress(label, total, unit, done)
            self._shown.__enter__()

    def _close(self) -> None:
        if self._shown is not None:
            self._shown.__exit__(None, None, None)
        self._shown = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
