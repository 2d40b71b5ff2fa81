"""A worker on Ray that reads and checks any unit."""

import threading

from unic_cache.config import VerifyConfig
from unic_cache.errors import CacheError
from unic_cache.files.schemes import open_location
from unic_cache.store.commit import CommitRecord, Unit
from unic_cache.store.member import Member
from unic_cache.store.unit_check import Finding, check_unit

Item = tuple[int, str, Unit]  # place in the order, member's folder, unit


class Checker:
    """Checks units, one in each thread."""

    def __init__(self, config: VerifyConfig, number: int) -> None:
        self._location = open_location(config.cache, number)
        self._members: dict[str, Member] = {}
        self._opening = threading.Lock()

    def prepare(self) -> None:
        """Nothing: the driver reads the index and the specs."""

    def open(self) -> None:
        """Nothing: a member is opened for its first unit."""

    def work(self, item: Item) -> tuple[CommitRecord | None, tuple[Finding, ...]]:
        """The unit's record, None if it is broken, and what is wrong with it."""
        _, folder, unit = item
        with self._opening:
            if folder not in self._members:
                member = Member.open(self._location, folder)
                if member is None:
                    raise CacheError(f"{self._location.url}/{folder}/spec.json vanished while it was read; start again")
                self._members[folder] = member
        state = check_unit(self._members[folder], unit)
        return state.record, state.findings
