"""What class numbers mean: `classes.json` beside the tars, {"0": "ant", "1": "bee", ...}.

Numbers alone prove nothing: two folders that number their classes by themselves give one number to two classes as soon
as one of them lacks a class. So classes are kept by name, and compared by name.
"""

import json
from collections.abc import Iterable, Mapping

from unic_cache.errors import ShardError
from unic_cache.views.shards import beside

FILE = "classes.json"

Names = Mapping[int, str]


def read_classes(data: bytes, where: str) -> dict[int, str]:
    """The names of a classes.json by number. ShardError, naming the file `where`, on anything else."""
    try:
        found = {int(number): name for number, name in json.loads(data).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ShardError(f'{where} is no list of classes such as {{"0": "ant"}} ({error}); put a copy back') from error
    if not all(isinstance(name, str) for name in found.values()) or min(found, default=0) < 0:
        raise ShardError(f"{where}: classes have names, and numbers from 0; put a copy back")
    if len(set(found.values())) < len(found):
        raise ShardError(f"{where} gives one name to two classes; rename one")
    return found


def classes_json(names: Names) -> bytes:
    """The file's bytes."""
    ordered = {str(number): names[number] for number in sorted(names)}
    return json.dumps(ordered, indent=1, ensure_ascii=False).encode() + b"\n"


def classes_beside(paths: Iterable[str]) -> dict[str, Names | None]:
    """Each folder of the tars, and the classes that its classes.json names; None where there is no such file."""
    found: dict[str, Names | None] = {}
    for path in paths:
        folder = path.rpartition("/")[0]
        if folder not in found:
            data = beside(path, FILE)
            found[folder] = None if data is None else read_classes(data, f"{folder or '.'}/{FILE}")
    return found


def check_classes(numbered: Mapping[str, Names | None]) -> None:
    """ShardError where a number means two classes, or a class has two numbers, in two of the folders.

    Nor can numbers be compared with names: ShardError where one folder has a classes.json and another has none.
    """
    known = [(folder, names) for folder, names in numbered.items() if names is not None]
    nameless = [folder for folder, names in numbered.items() if names is None]
    if known and nameless:
        raise ShardError(
            f"{known[0][0] or '.'}/{FILE} names the classes, and in {nameless[0] or '.'} they are numbers alone; if "
            f"the numbers mean the same, copy that {FILE} there"
        )
    for at, (folder, names) in enumerate(known):
        for other, others in known[:at]:
            clash = _clash(others, names)
            if clash:
                raise ShardError(
                    f"{other or '.'} and {folder or '.'} number their classes differently ({FILE}: {clash}): a label "
                    f"would mean two things. Copy the one's {FILE} into an empty folder and `shard` the other's images "
                    "into it, so that both have the same numbers"
                )


def _clash(one: Names, other: Names) -> str:
    """The first number with two names, or name with two numbers; "" where there is none."""
    number_of = {name: number for number, name in one.items()}
    for number, name in other.items():
        if one.get(number, name) != name:
            return f"{number} is {one[number]!r} and {name!r}"
        if number_of.get(name, number) != number:
            return f"{name!r} is {number_of[name]} and {number}"
    return ""
