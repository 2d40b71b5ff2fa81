"""Check whole units against each other: one calibration per teacher, the same pixels for all members."""

from collections import Counter
from collections.abc import Mapping

from unic_cache.store.commit import Unit
from unic_cache.store.unit_check import BY_HAND, UNCOMMIT, Finding, UnitState

Place = tuple[int, int, str]  # segment, tar, view


class Agreement:
    """Takes every unit's state once; `findings` then lists contradictions. Stores two numbers per unit."""

    def __init__(self, calibrations: Mapping[str, int | None]) -> None:
        """`calibrations`: member -> checksum of its calibration.npz; None for pixels, or if that is broken."""
        self._calibrations = calibrations
        self._agreeing: Counter[str] = Counter()
        self._others: dict[str, list[tuple[str, Unit, int]]] = {}
        self._pixels: dict[Place, tuple[int, str]] = {}
        self._different: list[Finding] = []

    def add(self, state: UnitState) -> None:
        """Take one unit of one member."""
        record = state.record
        if record is None or state.pixels is None:
            return
        standing = self._calibrations[record.member]
        if standing is not None and record.calibration != standing:
            made_with = -1 if record.calibration is None else record.calibration
            self._others.setdefault(record.member, []).append((record.name, state.unit, made_with))
        else:
            self._agreeing[record.member] += 1
        place = state.unit.segment, state.unit.shard, state.unit.view
        pixels, member = self._pixels.setdefault(place, (state.pixels, record.member))
        if pixels != state.pixels:
            why = (
                f"{record.member} and {member} saw different pixels: two caches were mixed. `verify --shards` shows "
                "whose are right; remove the other's commits"
            )
            self._different.append(Finding(record.name, why, BY_HAND, record.member, state.unit))

    def findings(self) -> list[Finding]:
        """All contradictions. If most units of a teacher were made with another calibration, the file is at fault."""
        found = list(self._different)
        for member, units in self._others.items():
            standing, file = self._calibrations[member], f"{member}/calibration.npz"
            if len(units) > self._agreeing[member]:
                made_with = Counter(crc for _, _, crc in units).most_common(1)[0][0]
                why = (
                    f"has checksum {standing}, but {len(units)} units were made with one of checksum {made_with}: "
                    f"restore that one, or remove {member}/ and extract again"
                )
                found.append(Finding(file, why, BY_HAND, member))
                continue
            for name, unit, crc in units:
                why = f"was made with a calibration of checksum {crc}, but {file} has {standing}: two caches were mixed"
                found.append(Finding(name, why, UNCOMMIT, member, unit))
        return found
