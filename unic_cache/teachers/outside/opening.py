"""The spec of a teacher outside timm, by what its name or its folder says, and its network.

Specs are kept per process: some ask for files or build a model. Nothing here runs code of a repository; only `py:` runs
code that is not installed here, and that is the user's own import.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unic_cache.errors import TeacherError
from unic_cache.teachers.outside.folders import ModelFolder, opened, read_json
from unic_cache.teachers.outside.in_timm import WEIGHTS, spec_in_timm
from unic_cache.teachers.outside.loaded import CANNOT, Loaded
from unic_cache.teachers.outside.names import CONFIGS, FOLDER, HUB, OPEN_CLIP, PY, Outside, check, parsed
from unic_cache.teachers.outside.open_clips import load_open_clip, spec_by_tag, spec_in_open_clip
from unic_cache.teachers.outside.own_module import load_module, spec_of_module
from unic_cache.teachers.outside.vision import load_transformers, spec_in_transformers
from unic_cache.teachers.spec import OPEN_CLIP as OPEN_CLIPS
from unic_cache.teachers.spec import PY as MODULES
from unic_cache.teachers.spec import TRANSFORMERS, TeacherSpec


@functools.cache
def outside_spec(name: str, size: int | None) -> TeacherSpec:
    """The spec of a name without size and rules, at inputs of `size` px (None: its own). TeacherError without one."""
    check(name)
    outside = parsed(name)
    return SPECS[outside.scheme](outside, size)


def load_outside(spec: TeacherSpec, weights: str | None) -> Loaded:
    """The network of a spec of another library than timm, with the weights of a file, or else its own."""
    return LOADERS[spec.library](spec, None if weights is None else Path(weights))


def outside_file(spec: TeacherSpec) -> Path:
    """The weights of a timm model on the hub or in a folder. TeacherError if they cannot be had."""
    return opened(parsed(spec.source)).file(*WEIGHTS)


def _spec_of_folder(outside: Outside, size: int | None) -> TeacherSpec:
    folder = opened(outside)
    path = folder.file(*CONFIGS)
    config = read_json(path, folder.name)
    layouts = [LAYOUTS[key] for key in LAYOUTS if key in config] if path.name == CONFIGS[0] else [spec_in_open_clip]
    if not layouts:
        raise TeacherError(
            f"teacher {folder.name}: its config.json names neither timm's architecture nor transformers' model_type; "
            "wrap the model as py:package.module:factory"
        )
    try:
        return layouts[0](folder, config, size)
    except TeacherError:
        raise
    except CANNOT as error:  # a config is anyone's text
        raise TeacherError(
            f"teacher {folder.name}: {path} or the processor's file is not as it should be: "
            f"{type(error).__name__}: {error}"
        ) from error


LAYOUTS: dict[str, Callable[[ModelFolder, Any, int | None], TeacherSpec]] = {  # by what config.json names
    "architecture": spec_in_timm,
    "model_type": spec_in_transformers,
}
SPECS: dict[str, Callable[[Outside, int | None], TeacherSpec]] = {
    HUB: _spec_of_folder,
    FOLDER: _spec_of_folder,
    OPEN_CLIP: spec_by_tag,
    PY: spec_of_module,
}
LOADERS: dict[str, Callable[[TeacherSpec, Path | None], Loaded]] = {
    TRANSFORMERS: load_transformers,
    OPEN_CLIPS: load_open_clip,
    MODULES: load_module,
}
