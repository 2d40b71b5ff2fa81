"""Tell a cache's own folders from guests, which no command reads, changes or removes.

A folder is the cache's own if its spec.json names the teacher that the folder is named after or, if the spec is lost
or damaged, its commit records name the folder. Guests are renamed folders, copies, notes, another cache, and what file
systems create (`lost+found`, `@eaDir`).
"""

import json
import re
from itertools import islice
from typing import Any

from unic_cache.errors import BrokenError
from unic_cache.files.location import NAME, Location
from unic_cache.store.layout import RESERVED, VIEWS_MEMBER, teacher_folder
from unic_cache.store.member import LIMIT_SPEC_BYTES, read_within, whole_spec

SYSTEM = re.compile(r"[.@#$].*|lost\+found")  # may not even be readable
RECORDS_TRIED = 100
LIMIT_RECORD_BYTES = 2**28


def sort_folders(location: Location) -> tuple[list[str], dict[str, str]]:
    """(folders of the cache's members, {guest folder: why it is a guest})."""
    folders = [folder for folder in location.folders() if folder not in RESERVED - {VIEWS_MEMBER}]
    why = {folder: why_guest(location, folder) for folder in folders}
    own = [folder for folder, reason in why.items() if reason is None]
    return own, {folder: reason for folder, reason in why.items() if reason is not None}


def why_guest(location: Location, folder: str) -> str | None:
    """Why a folder is not a member of this cache; None for a member, whole or damaged."""
    if SYSTEM.fullmatch(folder) or not NAME.fullmatch(folder):
        return "no teacher has such a name"
    try:
        data = read_within(location, f"{folder}/spec.json", LIMIT_SPEC_BYTES)
    except BrokenError:
        data = b""
    spec = None if data is None else whole_spec(data)
    if spec is not None:
        called = _teacher_of(spec)
        if folder == VIEWS_MEMBER and called is None:
            return None
        if called is not None:
            own = folder != VIEWS_MEMBER and teacher_folder(called) == folder
            return None if own else f"its spec.json names {called}"
    members = set(_members_recorded(location, folder))
    if folder in members:
        return None
    if members:
        return f"its commit records name {min(members)}"
    return "it has no spec.json" if data is None else "its spec.json names no teacher"


def _teacher_of(spec: dict[str, Any]) -> str | None:
    teacher = spec.get("teacher")
    name = teacher.get("name") if isinstance(teacher, dict) else None
    return name if isinstance(name, str) else None


def _members_recorded(location: Location, folder: str) -> list[str]:
    """The members that a folder's first commit records name."""
    names = (name for name in location.names(f"{folder}/commits") if name.endswith(".json") and NAME.fullmatch(name))
    found: list[str] = []
    for name in islice(names, RECORDS_TRIED):
        try:
            member = json.loads(read_within(location, name, LIMIT_RECORD_BYTES) or b"{}").get("member")
        except (ValueError, AttributeError, RecursionError, BrokenError):
            continue
        found += [member] if isinstance(member, str) else []
    return found
