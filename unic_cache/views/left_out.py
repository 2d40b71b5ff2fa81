"""Files in a folder or tar that are not part of the data set: which they are, and how many.

Nothing is left out silently: each file or sample without a row is counted by reason, with the first as an example.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Reason(NamedTuple):
    """Why files are left out, in the singular and the plural."""

    one: str
    many: str


GUEST = Reason("hidden file or sidecar", "hidden files and sidecars")
DOCUMENT = Reason("document", "documents")
DEAD_LINK = Reason("link to no file of its tar", "links to no file of their tar")  # or to itself
SPARSE = Reason("sparse file", "sparse files")
SPECIAL = Reason("device, pipe or file of an unknown type", "devices, pipes and files of unknown types")
METADATA = Reason("file of WebDataset's metadata", "files of WebDataset's metadata")
NO_SAMPLE = Reason("file outside of all samples", "files outside of all samples")
NO_IMAGE = Reason("sample without image", "samples without image")
UNREAD_LABEL = Reason("label that cannot be read", "labels that cannot be read")
SEVERAL_DENSE = Reason("mask or depth map of a sample with several", "masks or depth maps of samples with several")
NO_PICTURE = Reason("file that is not an image", "files that are not images")
LOOP = Reason("link to a folder already taken", "links to folders already taken")

_OTHERS = {  # made by other systems; in lower case
    "@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin", "system volume information",
    "lost+found", "__macosx", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
}  # fmt: skip
_PAX = re.compile(r"paxheaders?(\.\d+)?")  # old unpackers turn a tar's pax headers into such files
_DOCUMENT = re.compile(r"(readme|licen[cs]e|notice|copying|changelog|citation|md5sums?|sha\d+sums?)\b", re.IGNORECASE)


@dataclass(frozen=True)
class LeftOut:
    """How many files were left out for one reason, and the first of them."""

    reason: Reason
    count: int
    example: str


class Tally:
    """Counts left-out files by reason."""

    def __init__(self) -> None:
        self._found: dict[Reason, LeftOut] = {}

    def add(self, reason: Reason, example: str, count: int = 1) -> None:
        """Count `count` more."""
        before = self._found.get(reason, LeftOut(reason, 0, shown(example)))
        self._found[reason] = LeftOut(reason, before.count + count, before.example)

    def total(self) -> tuple[LeftOut, ...]:
        """The counts, reasons in order of appearance."""
        return tuple(self._found.values())


def is_guest(name: str) -> bool:
    """Whether any part of a path in a data set is hidden or made by another system."""
    parts = name.lower().split("/")
    return any(part in _OTHERS or (part[:1] == "." and part.strip(".")) or _PAX.fullmatch(part) for part in parts)


def is_document(name: str) -> bool:
    """Whether a file without an image describes the data set (README, LICENSE, ...)."""
    return _DOCUMENT.match(name.rpartition("/")[2]) is not None


def merged(parts: Iterable[LeftOut]) -> tuple[LeftOut, ...]:
    """The counts of several tars, added up by reason."""
    tally = Tally()
    for one in parts:
        tally.add(one.reason, one.example, one.count)
    return tally.total()


def listed(parts: Iterable[LeftOut]) -> str:
    """Counts, reasons and examples: '2 sparse files (a.jpg, ...), 1 sample without image (b: only json)'."""
    return ", ".join(
        f"{one.count:,} {one.reason.one} ({one.example})"
        if one.count == 1
        else f"{one.count:,} {one.reason.many} ({one.example}, ...)"
        for one in merged(parts)
    )


def shown(name: str) -> str:
    """A printable name: control characters and bytes that are not UTF-8 become escapes."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
