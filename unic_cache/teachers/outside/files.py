"""A model's weights by file: whole, or in the parts that an index names. Nothing is unpickled but tensors."""

from collections.abc import Collection
from pathlib import Path

from unic_cache.errors import TeacherError, WeightsError
from unic_cache.teachers.outside.folders import ModelFolder, read_json
from unic_cache.teachers.weights import content_of
from unic_cache.weights.state_dicts import State, largest

INDEX = ".index.json"
WRAPPER = "module."
FLAT = "any"  # a layout without readers of its own


def read_state(path: Path, name: str, folder: ModelFolder | None = None) -> State:
    """The tensors of a file, or of all files that it is the index of. TeacherError if they cannot be read.

    The parts lie beside the index, or else are those of `folder`.
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
    try:
        return largest(content_of(path, FLAT, name), path)
    except WeightsError as error:
        raise TeacherError(f"teacher {name}: {error}") from error


def in_parallel(state: State, own: Collection[str] = ()) -> State:
    """The tensors without the prefix of data parallelism, unless the network's `own` names begin with it too."""
    wrapped = all(key.startswith(WRAPPER) for key in state) and not state.keys() <= set(own)
    return {key.removeprefix(WRAPPER): tensor for key, tensor in state.items()} if wrapped else state
