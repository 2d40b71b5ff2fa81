"""A worker on Ray that fills any unit."""

import threading
from dataclasses import replace
from itertools import chain

from pipelines.command.device import pick_device
from pipelines.command.progress import say
from pipelines.extracting.filling import Summary, batches_of, check_idle, commit, fill, open_recorders, plan
from pipelines.extracting.opening import Opened, open_teachers
from pipelines.extracting.opening_options import OpeningOptions
from pipelines.extracting.recorder import BATCHES_AHEAD, Recorder
from pipelines.extracting.unit_rows import UnitRows
from unic_cache.ahead import ahead, thread_pool
from unic_cache.config import ExtractConfig
from unic_cache.errors import EmptyShardError
from unic_cache.store.commit import Unit

Item = tuple[Unit, tuple[str, ...]]  # a unit, and the folders of the members that lack it


class Filler:
    """A worker on Ray: it opens the cache and the teachers once, then fills any unit.

    Of the units that it has at once, one is shown to the teachers, the next one's first views are made, another is
    written.
    """

    def __init__(self, config: ExtractConfig, number: int) -> None:
        self._config, self._number = config, number
        self._device = pick_device(config.device)
        self._pool = thread_pool(config.threads)
        self._opened: Opened | None = None
        self._recorders: dict[str, Recorder] = {}
        self._opening, self._filling, self._writing = (threading.Lock() for _ in range(3))

    def open(self) -> Opened:
        """Open the cache and the teachers; calibrate new ones."""
        with self._opening:
            if self._opened is None:
                options = replace(OpeningOptions.of(self._config), worker_index=self._number)
                opened = open_teachers(options, self._pool, self._device)
                self._recorders = open_recorders(self._config, opened)
                self._opened = opened
            return self._opened

    def prepare(self) -> tuple[list[Item], Summary]:
        """The units to fill, and the number of those that no member lacks; none if every tar is empty."""
        try:
            opened = self.open()
        except EmptyShardError as error:  # no view is missing
            say(str(error))
            return [], Summary()
        work, skipped = plan(self._config, opened, self._recorders)
        check_idle(opened, work)
        return [(unit, tuple(one.member.folder for one in them)) for unit, them in work.items()], Summary(
            skipped=skipped
        )

    def work(self, item: Item) -> Summary:
        """Fill one unit."""
        (unit, lacking), opened, size = item, self.open(), self._config.batch_size
        members = [one for one in self._recorders.values() if one.member.folder in lacking]
        rows = UnitRows(unit, members, opened.cache.pixels_seen(unit))
        groups = list(batches_of([unit], size))
        batches = ahead(groups, lambda wanted: opened.pixels.start(wanted, size), BATCHES_AHEAD)
        first = [next(batches)]  # which starts those after it, too
        summary = Summary(units=1, images=unit.rows)
        with self._filling:
            for wanted, batch in zip(groups, chain(first, batches), strict=True):
                fill(self._config, opened, rows, wanted, batch, self._device, summary)
        with self._writing:
            commit(rows, summary)
        return summary
