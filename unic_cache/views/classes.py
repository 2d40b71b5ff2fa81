"""The names of class numbers: `classes.json` beside the tars, {"0": "ant", "1": "bee", ...}.

Folders that number their classes independently give one number to two classes as soon as one folder lacks a class. So
classes are stored and compared by name.
"""

import json
from collections.abc import Iterable, Mapping

from unic_cache.errors import ShardError
from unic_cache.views.tar_location import beside

CLASSES_FILE = "classes.json"

Names = Mapping[int, str]


def read_classes(data: bytes, where: str) -> dict[int, str]:
    """{number: name} of a classes.json. ShardError, naming the file `where`, if it is anything else."""
    try:
        found = {int(number): name for number, name in json.loads(data).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise ShardError(
            f'{where} is not a list of classes such as {{"0": "ant"}} ({error}); restore it from a copy'
        ) from error
    if not all(isinstance(name, str) for name in found.values()) or min(found, default=0) < 0:
        raise ShardError(f"{where}: classes need names, and numbers from 0; restore it from a copy")
    if len(set(found.values())) < len(found):
        raise ShardError(f"{where} gives two classes the same name; rename one")
    return found


def classes_json(names: Names) -> bytes:
    """The bytes of a classes.json."""
    ordered = {str(number): names[number] for number in sorted(names)}
    return json.dumps(ordered, indent=1, ensure_ascii=False).encode() + b"\n"


def classes_beside(paths: Iterable[str]) -> dict[str, Names | None]:
    """Each folder of the tars and the classes in its classes.json; None if it has none."""
    found: dict[str, Names | None] = {}
    for path in paths:
        folder = path.rpartition("/")[0]
        if folder not in found:
            data = beside(path, CLASSES_FILE)
            found[folder] = None if data is None else read_classes(data, f"{folder or '.'}/{CLASSES_FILE}")
    return found


def check_classes(numbered: Mapping[str, Names | None]) -> None:
    """ShardError if two folders give one number to two classes, or two numbers to one class.

    ShardError too if only some folders have a classes.json, since numbers cannot be compared with names.
    """
    known = [(folder, names) for folder, names in numbered.items() if names is not None]
    nameless = [folder for folder, names in numbered.items() if names is None]
    if known and nameless:
        raise ShardError(
            f"{known[0][0] or '.'}/{CLASSES_FILE} names the classes, but {nameless[0] or '.'} has only their numbers; "
            f"if the numbers mean the same, copy that {CLASSES_FILE} there"
        )
    for at, (folder, names) in enumerate(known):
        for other, others in known[:at]:
            clash = _clash(others, names)
            if clash:
                raise ShardError(
                    f"{other or '.'} and {folder or '.'} number their classes differently ({CLASSES_FILE}: {clash}), "
                    f"so labels are ambiguous. Copy one's {CLASSES_FILE} into an empty folder and `shard` the other's "
                    "images into that folder, so that both use the same numbers"
                )


def _clash(one: Names, other: Names) -> str:
    """The first number with two names, or name with two numbers; "" if there is none."""
    number_of = {name: number for number, name in one.items()}
    for number, name in other.items():
        if one.get(number, name) != name:
            return f"{number} is {one[number]!r} and {name!r}"
        if number_of.get(name, number) != number:
            return f"{name!r} is {number_of[name]} and {number}"
    return ""
