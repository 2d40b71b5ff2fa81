"""A folder of files in memory whose every call is watched: counted, stopped, or made to fail."""

from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import TypeVar

from unic_cache.files.location import checked
from unic_cache.files.open_file import RangeFile

Files = dict[str, bytes]
T = TypeVar("T")


class Watch:
    """Sees each call before it takes effect and after; what it raises, the caller of the store sees."""

    def before(self, call: str, name: str) -> None:
        """The call has not reached the store."""

    def after(self, call: str, name: str, answer: object) -> None:
        """The call has taken effect; its answer is on the way."""


class MemoryFolder:
    """A `Location`. Workers that share `files` share the store, each behind a watch of its own."""

    waits = False

    def __init__(self, files: Files, watch: Watch | None = None) -> None:
        self.url = "memory"
        self.files = files
        self.watch = watch or Watch()

    def read(self, name: str) -> bytes | None:
        return self._call("read", name, lambda: self.files.get(name))

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        def part() -> bytes:
            if name not in self.files:
                raise FileNotFoundError(name)
            return self.files[name][offset : offset + size]

        return self._call("read_range", name, part)

    def open(self, name: str) -> RangeFile:
        return RangeFile(partial(self.read_range, name))

    def size(self, name: str) -> int | None:
        return self._call("size", name, lambda: len(self.files[name]) if name in self.files else None)

    def create(self, name: str, data: bytes) -> bool:
        return self._call("create", name, lambda: self.files.setdefault(name, data) == data)

    def replace(self, name: str, data: bytes) -> None:
        self._call("replace", name, lambda: self.files.update({name: data}))

    def delete(self, name: str) -> None:
        self._call("delete", name, lambda: self.files.pop(name, None))

    def names(self, prefix: str = "", without: Collection[str] = ()) -> Iterator[str]:
        assert not without
        return iter(self._call("names", prefix, lambda: self._below(prefix)))

    def names_between(self, folder: str, after: str, before: str) -> list[str]:
        def between() -> list[str]:
            last = {name: name.removeprefix(f"{folder}/") for name in self._below(folder)}
            return [name for name, own in last.items() if "/" not in own and after < own < before]

        return self._call("names_between", folder, between)

    def times_between(self, folder: str, after: str, before: str) -> dict[str, float | None]:
        return dict.fromkeys(self.names_between(folder, after, before))

    def folders(self, prefix: str = "") -> list[str]:
        def inside() -> list[str]:
            rest = [name[len(prefix) + bool(prefix) :] for name in self._below(prefix)]
            return sorted({name.partition("/")[0] for name in rest if "/" in name})

        return self._call("folders", prefix, inside)

    def _below(self, prefix: str) -> list[str]:
        return sorted(name for name in list(self.files) if not prefix or name.startswith(f"{prefix}/"))

    def _call(self, call: str, name: str, effect: Callable[[], T]) -> T:
        if name:
            checked(name)
        self.watch.before(call, name)
        try:
            answer = effect()
        except FileNotFoundError:
            self.watch.after(call, name, FileNotFoundError)
            raise
        self.watch.after(call, name, answer)
        return answer
