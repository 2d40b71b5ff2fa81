"""What is exported names no folder of the machine of the run: a path is cut to its last part.

A teacher or the first weights may be a folder, as `local-dir:PATH`. PATH is then in names, and in what is said of them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unic_cache.student.ladder import head_name
from unic_cache.teachers.outside.names import is_outside

NAMED = re.compile(r"local-dir:([\w./-]+)", re.ASCII)  # a path has no other characters there
PATHS = ("from_run", "val_shards")  # settings that are paths or patterns alone


@dataclass(frozen=True)
class Places:
    """Callable on JSON-ready data: the same with short paths, also in keys."""

    short: Mapping[str, str]  # a path that a `local-dir:` name has -> its last part; numbered where two are alike

    def __call__(self, value: Any) -> Any:
        """The value without places."""
        if isinstance(value, Mapping):
            return {self(key): self(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self(one) for one in value]
        if not isinstance(value, str) or not self.short:
            return value
        paths = "|".join(map(re.escape, sorted(self.short, key=len, reverse=True)))
        return re.sub(rf"(?<![\w./-])({paths})(?![\w./-])", lambda found: self.short[found[0]], value, flags=re.ASCII)

    def projectors(self, state: Mapping[str, Tensor], teachers: list[str]) -> dict[str, Tensor]:
        """The projectors' tensors, `heads.TEACHER:KIND...`, under the teachers' new names."""
        keys = {_key(name): _key(self(name)) for name in teachers}
        named: dict[str, Tensor] = {}
        for name, value in state.items():
            root, head, rest = name.split(".", 2)
            teacher, _, kind = head.rpartition(":")
            named[f"{root}.{keys[teacher]}:{kind}.{rest}"] = value
        return named


def places_in(data: Any) -> Places:
    """The places that JSON-ready data names."""
    paths = {path for text in _texts(data) for path in NAMED.findall(text)}
    short: dict[str, str] = {}
    for path in sorted(path for path in paths if "/" in path):
        last = path.rstrip("/").rpartition("/")[2]
        alike = sum(last == one.rstrip("/").rpartition("/")[2] for one in short) + (last in paths)
        short[path] = f"{last}-{alike + 1}" if alike else last
    return Places(short)


def placeless(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A student's provenance with the names of files alone, without the folders that they were in."""
    found: dict[str, Any] = places_in(provenance)(_without_paths(provenance))
    return found


def _without_paths(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance, and that of the runs before, with the settings that are paths cut to their last parts."""
    found = dict(provenance)
    if isinstance(found.get("config"), Mapping):
        settings = dict(found["config"])
        settings |= {key: _last(settings[key]) for key in PATHS if key in settings}
        if isinstance(settings.get("init"), str) and not is_outside(settings["init"]):
            settings["init"] = _last(settings["init"])
        if isinstance(settings.get("weights"), list | tuple):
            settings["weights"] = [[name, _last(file)] for name, file in settings["weights"]]
        found["config"] = settings
    if isinstance(found.get("init"), Mapping) and not is_outside(str(found["init"].get("name"))):
        found["init"] = {**found["init"], "name": _last(found["init"].get("name"))}
    if isinstance(found.get("from"), Mapping):
        found["from"] = _without_paths(found["from"])
    return found


def _last(value: Any) -> Any:
    return value.rstrip("/").rpartition("/")[2] if isinstance(value, str) else value


def _key(teacher: str) -> str:
    return head_name(teacher, "").rpartition(":")[0]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.items():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)
