"""Check the fields of an index's JSON; every error names the file and the place in it."""

from typing import Any

from unic_cache.errors import CacheError


def fields_of(data: Any, names: tuple[str, ...], where: str) -> dict[str, Any]:
    """The named fields of a JSON object. CacheError if it is no object or lacks one."""
    missing = [name for name in names if not isinstance(data, dict) or name not in data]
    if missing:
        raise CacheError(f"{where}: {', '.join(missing)} missing")
    return {name: data[name] for name in names}


def is_natural(value: Any) -> bool:
    """Whether `value` is an integer in [0, 2**63)."""
    return type(value) is int and 0 <= value < 2**63


def checked(values: Any, name: str, limit: int, where: str, may_lack: bool = False) -> Any:
    """`values`, if it is a list of integers in [0, limit), with null if `may_lack`; CacheError otherwise."""
    if not isinstance(values, list):
        raise CacheError(f"{where}: {name} is not a list")
    there = [value for value in values if value is not None] if may_lack else values
    if set(map(type, there)) <= {int} and (not there or (min(there) >= 0 and max(there) < limit)):
        return values
    wrong = next(value for value in there if type(value) is not int or not 0 <= value < limit)
    row = next(row for row, value in enumerate(values) if value is wrong)
    raise CacheError(f"{where}: {name}[{row}] is {str(wrong)[:80]!r}, which is out of bounds")
