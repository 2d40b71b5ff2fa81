"""A model's weights by file: whole, or in the parts that an index names. Nothing is unpickled but tensors."""

from pathlib import Path

from unic_cache.errors import TeacherError
from unic_cache.teachers.outside.folders import ModelFolder, read_json
from unic_cache.teachers.weights import content_of
from unic_cache.weights.state_dicts import State, mappings, without_shared_prefix

INDEX = ".index.json"
FLAT = "any"  # a layout without readers of its own


def read_state(path: Path, name: str, folder: ModelFolder | None = None) -> State:
    """The tensors of a file, or of all files that it is the index of. TeacherError if they cannot be read.

    The parts are those of `folder`, or else lie beside the index.
    """
    if not path.name.endswith(INDEX):
        return _tensors(path, name)
    named = read_json(path, name).get("weight_map")
    if not isinstance(named, dict) or not all(
        isinstance(part, str) and Path(part).name == part for part in named.values()
    ):
        raise TeacherError(f"teacher {name}: {path} is no index of weights; download it again")
    state: dict[str, object] = {}
    for part in sorted(set(named.values())):
        beside = path.with_name(part)
        state |= _tensors(beside if beside.is_file() or folder is None else folder.file(part), name)
    if state.keys() != named.keys():
        odd = sorted(state.keys() ^ named.keys())
        raise TeacherError(
            f"teacher {name}: the parts of {path} and the index differ in {odd[0]} and {len(odd) - 1} more"
        )
    return state  # type: ignore[return-value]


def _tensors(path: Path, name: str) -> State:
    found = [tensors for _, tensors in mappings(content_of(path, FLAT, name))]
    if not found:
        raise TeacherError(f"teacher {name}: no tensors in {path}")
    largest = max(found, key=len)
    return without_shared_prefix(largest) if all(key.startswith("module.") for key in largest) else largest
