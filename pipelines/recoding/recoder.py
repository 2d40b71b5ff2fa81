"""A worker on Ray that recodes any unit."""

import threading

from pipelines.command.device import pick_device
from pipelines.recoding.copying import copy_unit, views_to_copy
from pipelines.recoding.one_unit import batches_of, checked, commit, plan, read, recoded
from pipelines.recoding.opening import Opened, going_on, open_both
from pipelines.recoding.summary import Summary
from unic_cache.config import RecodeConfig
from unic_cache.store.commit import Unit
from unic_cache.store.layout import VIEWS_MEMBER
from unic_cache.store.member import Member

Item = tuple[Unit, tuple[str, ...]]  # a unit, and the teachers that lack it; without any, its kept views


class Recoder:
    """A worker on Ray: it opens both caches once, then recodes any unit. One is computed while others are read."""

    def __init__(self, config: RecodeConfig, number: int) -> None:
        self._config, self._number = config, number
        self._device = pick_device(config.device)
        self._opened: Opened | None = None
        self._opening, self._working, self._writing = (threading.Lock() for _ in range(3))

    def open(self) -> Opened:
        """Open both caches, and calibrate what is new."""
        with self._opening:
            if self._opened is None:
                self._opened = open_both(self._config, self._device, self._number)
            return self._opened

    def prepare(self) -> tuple[list[Item], Summary]:
        """Features to recode, then views to copy; and what is known before: units that are there, and fidelity."""
        opened = self.open()
        with going_on(self._config):
            work, skipped = plan(self._config, opened.source, opened.coders)
            views, there = views_to_copy(self._config, opened.source, opened.target)
        summary = Summary(skipped=skipped + there)
        opened.fidelity(summary)
        features = [(unit, tuple(one.source.name for one in lacking)) for unit, lacking in work.items()]
        return [*features, *((unit, ()) for unit in views)], summary

    def work(self, item: Item) -> Summary:
        """Recode a unit of some teachers, or copy one of kept views."""
        (unit, lacking), opened, summary = item, self.open(), Summary()
        source = opened.source
        with going_on(self._config):
            if not lacking:
                assert source.pixels is not None
                theirs = Member.ensure(opened.target.location, VIEWS_MEMBER, source.pixels.spec)
                copy_unit(source.pixels, theirs, opened.target, unit)
                summary.views = 1
            coders = [one for one in opened.coders if one.source.name in lacking]
            for coder, record in checked(opened, unit, coders).items() if coders else ():
                parts = [read(coder, unit, rows) for rows in batches_of(unit)]
                with self._working:
                    arrays = recoded(source, coder, record, iter(parts))
                with self._writing:
                    commit(arrays, record, summary)
        return summary
