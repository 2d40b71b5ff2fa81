"""Parse class numbers as people and other programs write them."""

import re

_NUMBER = re.compile(r"\+?([0-9]{1,18})(\.0*)?")
_NONE = re.compile(r"|-1(\.0*)?")  # no label
_ANY_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def class_number(text: str) -> int | None:
    """The class number in `text` ('2', '+2', '2.0'), or None for no label ('', '-1').

    ValueError for anything else: fractions, other negative numbers, names.
    """
    plain = text.strip()
    if _NONE.fullmatch(plain):
        return None
    found = _NUMBER.fullmatch(plain)
    if found is None:
        raise ValueError(f"{text[:40]!r} is not a class number")
    return int(found[1])


def is_number(text: str) -> bool:
    """Whether `text` is a number of any kind or empty, and so cannot be a class name."""
    return _ANY_NUMBER.fullmatch(text.strip()) is not None or not text.strip()


def label_text(data: bytes) -> str:
    """The text of a label file such as a `.cls` member: UTF-8, or UTF-16 with a byte order mark."""
    utf16 = data[:2] in {b"\xff\xfe", b"\xfe\xff"}
    return data.decode("utf-16" if utf16 else "utf-8-sig", "backslashreplace")
