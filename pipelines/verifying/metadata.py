"""Check the files that all others depend on: index, specs, calibrations, probes.

Each is a function of its content, so reading it and writing it again must give the same bytes; this finds flips that no
reader notices, such as in a zip header. Only a probe is certain to be reproducible.
"""

import json
from collections.abc import Collection, Sequence

import numpy as np
from crc32c import crc32c

from unic_cache.config import Views
from unic_cache.errors import CacheError
from unic_cache.files.location import NAME, Location
from unic_cache.store.calibrate import Calibration
from unic_cache.store.member import Member, read_within, spec_bytes
from unic_cache.store.npz import load_npz, save_npz
from unic_cache.store.unit_check import BY_HAND, LIMIT_METADATA_BYTES, REMOVE, Finding
from unic_cache.stream.decoder_probe import is_probe
from unic_cache.views.index import Segment, segment_file
from unic_cache.views.index_seal import IndexSeal, seal_file
from unic_cache.views.segments import read_segments

LIMIT_NPZ_BYTES = 2**28
OTHER_TEXT = "has the same content, but not the bytes that this release writes"
RERUN = (
    "restore a copy; or remove it and run the command that made it again, which writes the same bytes on a machine "
    "with the same versions, and then `unic-cache verify`"
)


def read_index(location: Location, names: Collection[str], findings: list[Finding]) -> tuple[Segment, ...]:
    """The segments; none, and a finding, if one cannot be read."""
    try:
        segments = read_segments(location, by_seals=False)
    except CacheError as error:
        findings.append(Finding("index", f"{error}; {RERUN}", BY_HAND))
        return ()
    for segment in segments:
        name = segment_file(segment.number)
        if location.read(name) != segment.to_bytes():
            findings.append(Finding(name, f"{OTHER_TEXT}; {RERUN}", BY_HAND))
        seal = seal_file(segment.number)
        if seal in names and location.read(seal) != IndexSeal.of(segment).to_bytes():
            findings.append(Finding(seal, f"does not fit {name}; nothing is lost with it", REMOVE))
    if not segments and any(name.endswith("/spec.json") for name in names):
        findings.append(Finding(segment_file(0), f"is missing; {RERUN}", BY_HAND))
    return segments


def read_members(location: Location, names: Collection[str], findings: list[Finding]) -> tuple[list[Member], set[str]]:
    """(members with a readable spec, folders of those without)."""
    found: list[Member] = []
    lost: set[str] = set()
    folders = {name.partition("/")[0] for name in names if "/" in name} - {"index", "probe"}
    for folder in sorted(filter(NAME.fullmatch, folders)):
        file = f"{folder}/spec.json"
        try:
            member = Member.open(location, folder)
            same = member is None or read_within(location, file, LIMIT_METADATA_BYTES) == spec_bytes(member.spec)
            why = "" if same else OTHER_TEXT
        except CacheError as error:
            member, why = None, str(error)
        if member is not None:
            found.append(member)
        elif not why and any(name.startswith(f"{folder}/commits/") for name in names):
            why = "is missing"
        if why:
            findings.append(Finding(file, f"{why}; {RERUN}", BY_HAND, folder))
            lost |= set() if member else {folder}
    return found, lost


def check_calibration(member: Member, needed: bool, findings: list[Finding]) -> int | None:
    """The checksum of a member's calibration; None if it is unusable, with a finding if it exists or is `needed`."""
    if member.features is None:
        return None
    name, data, why = member.calibration_name, None, ""
    try:
        data = read_within(member.location, name, LIMIT_NPZ_BYTES)
        if data is None:
            why = "is missing" if needed else ""
        else:
            calibration = Calibration.from_bytes(data, name)
            found = {kind: len(mean) for kind, mean in calibration.mean.items()}
            wanted = {name: kind.channels for name, kind in member.features.kinds.items()}
            if found != wanted:
                why = f"has statistics of {found} channels, but the spec's are {wanted}"
            elif save_npz(load_npz(data, name)) != data:
                why = OTHER_TEXT
            calibration.codec(member.features)
    except CacheError as error:
        why = str(error).removeprefix(f"{name}: ")
    if why:
        findings.append(Finding(name, f"{why}; {RERUN}", BY_HAND, member.folder))
    return None if why or data is None else crc32c(data)


def check_probes(location: Location, names: Collection[str], segments: Sequence[Segment]) -> list[Finding]:
    """Findings for the cache's probes."""
    findings = []
    for name in sorted(name for name in names if is_probe(name)):
        why = _probe_problem(location, name, segments)
        if why:
            findings.append(Finding(name, f"{why}; `unic-cache extract` with the same tars makes it again", REMOVE))
    return findings


def _probe_problem(location: Location, name: str, segments: Sequence[Segment]) -> str:
    """Why a probe cannot be used; "" if it can."""
    try:
        data = read_within(location, name, LIMIT_NPZ_BYTES)
        if data is None:
            return "is missing"
        arrays = load_npz(data, name)
        views, _ = Views.parse(f"{name.removeprefix('probe/').removesuffix('.npz')}-0")
        address, kept = arrays["address"].tolist(), arrays["views"]
        if kept.dtype != np.uint8 or kept.shape != (len(address), views.size, views.size, 3):
            return f"holds views of {kept.dtype} and shape {kept.shape}"
        if any(not 0 <= row < segments[at].counts[tar] or min(at, tar) < 0 for at, tar, row in address):
            return "names rows that the index does not have"
        json.loads(arrays["versions"].tobytes())
        return "" if save_npz(arrays) == data else OTHER_TEXT
    except CacheError as error:
        return str(error).removeprefix(f"{name}: ")
    except (KeyError, ValueError, TypeError, IndexError, RecursionError) as error:
        return f"is not a probe ({error!r:.200})"
