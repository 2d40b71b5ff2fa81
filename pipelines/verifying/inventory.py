"""Compare the files of a cache with those expected, by name: units done, begun and missing, and foreign files.

Expected is every tar of a segment under every view that the member has begun, if any member has begun the view in that
segment: center views of held-out tars alone leave nothing missing. A unit's data without a record is from a stopped or
running extraction; it is not broken, and `extract` completes it.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from unic_cache.config import Views
from unic_cache.store.commit import Unit, view_called
from unic_cache.store.layout import Extent, commit_name, metadata_objects
from unic_cache.store.member import Member
from unic_cache.store.seal import runs, seal_name
from unic_cache.store.unit_check import data_names
from unic_cache.stream.decoder_probe import is_probe, probe_name
from unic_cache.stream.held_out import HELD_OUT_FILE
from unic_cache.views.index import Segment, segment_file
from unic_cache.views.index_seal import seal_file

VIEW_FILE = re.compile(r"(?P<member>[^/]+)/(commits|features\.zarr)/(?P<segment>\d{6})/(?P<view>[^/]+)/.+")


@dataclass(frozen=True)
class Missing:
    """An expected unit without a record, and the names of its data that exist nevertheless."""

    member: Member
    unit: Unit
    data: tuple[str, ...]

    def __str__(self) -> str:
        state = "is unfinished" if self.data else "does not exist yet"
        return f"{self.member.folder}, {self.unit}: {state}"

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"teacher": self.member.folder, "view": self.unit.view, "shard": self.unit.name, "data": list(self.data)}


@dataclass
class Survey:
    """The files of a cache by kind."""

    committed: list[tuple[Member, Unit]] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    metadata: dict[str, tuple[Member, bytes]] = field(default_factory=dict)  # zarr.json that must exist -> its content
    probes: set[str] = field(default_factory=set)  # that committed views need
    foreign: list[str] = field(default_factory=list)

    def unrecorded(self) -> dict[tuple[str, str], int]:
        """(member, view) -> number of tars with all their data, if several have it but none has a record.

        A killed run leaves one such tar per worker; with more, records were lost or are not copied yet.
        """
        done = {(member.folder, unit.view) for member, unit in self.committed}
        whole = [one for one in self.missing if len(one.data) == len(data_names(one.member, one.unit))]
        found = Counter((one.member.folder, one.unit.view) for one in whole)
        return {place: tars for place, tars in found.items() if tars > 1 and place not in done}


def survey(names: Collection[str], segments: Sequence[Segment], members: Sequence[Member], lost: set[str]) -> Survey:
    """Sort the names. Files in `lost`, the folders of unreadable members, are not reported."""
    found = Survey()
    begun: dict[str, set[tuple[int, str]]] = {}
    for name in names:
        match = VIEW_FILE.fullmatch(name)
        if match and int(match["segment"]) < len(segments) and view_called(match["view"]):
            begun.setdefault(match["member"], set()).add((int(match["segment"]), match["view"]))
    claimed = {file(segment.number) for segment in segments for file in (segment_file, seal_file)}
    for member in members:
        claimed |= {f"{member.folder}/spec.json", member.calibration_name}
        for view in sorted({view for _, view in begun.get(member.folder, ())}):
            for segment in segments:
                if any((segment.number, view) in begun.get(other.folder, ()) for other in members):
                    claimed |= claim_view(found, names, member, segment, view)
    claimed |= found.probes
    found.foreign = sorted(
        name
        for name in names
        if name not in claimed
        and not is_probe(name)
        and not HELD_OUT_FILE.fullmatch(name)
        and name.partition("/")[0] not in lost
    )
    return found


def claim_view(found: Survey, names: Collection[str], member: Member, segment: Segment, view: str) -> set[str]:
    """Add one view of a segment to `found`; returns the names that belong to it."""
    extent = Extent(len(segment.shards), segment.rows)
    views, number = Views.parse(view)
    claimed: set[str] = set()
    done = False
    for shard, entry in enumerate(segment.shards):
        unit = Unit(segment.number, extent, shard, entry.name, entry.rows, views, number)
        record = commit_name(member.folder, segment.number, view, shard)
        data = data_names(member, unit)
        claimed |= {record, *data}
        if record in names:
            done = True
            found.committed.append((member, unit))
        else:
            found.missing.append(Missing(member, unit, tuple(name for name in data if name in names)))
    expected = metadata_objects(member.folder, segment.number, view, member.arrays, extent)
    found.metadata |= {name: (member, text) for name, text in expected.items() if done or name in names}
    if done:
        found.probes.add(probe_name(views))
    seals = {seal_name(member.folder, segment.number, view, run) for run in runs(len(segment.shards))}
    return claimed | seals | set(expected)
