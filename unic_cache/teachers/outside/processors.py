"""What an image processor of transformers says of pixels: size, mean and std, by its JSON and without its code.

Its own resizing is not used: a view becomes a network's input by one rule (`unic_cache.inputs`).
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from unic_cache.errors import TeacherError
from unic_cache.teachers.outside.folders import ModelFolder

FILE, JOINT = "preprocessor_config.json", "processor_config.json"
Colour = tuple[float, float, float]


class Pixels(NamedTuple):
    """Of pixels in [0, 1]; the size is that of the crop, None if the file says none."""

    mean: Colour
    std: Colour
    size: int | None


def pixels_of(folder: ModelFolder) -> Pixels:
    """The pixels that a model's processor makes. TeacherError without one, or for what is no plain mean and std."""
    said = folder.optional(FILE)
    if said is None:
        said = (folder.optional(JOINT) or {}).get("image_processor")
    if not isinstance(said, Mapping):
        raise TeacherError(
            f"teacher {folder.name}: {folder.place} has no {FILE} with its mean and std; save it with the processor's "
            "save_pretrained"
        )
    factor = (said.get("rescale_factor") or 1 / 255) if _flag(said, "do_rescale") else 1
    if not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise TeacherError(
            f"teacher {folder.name}: its {FILE} scales pixels by {factor}, not by 1/255 to [0, 1]; wrap the model as "
            "py:package.module:factory"
        )
    if not _flag(said, "do_normalize"):
        return Pixels((0.0,) * 3, (1.0,) * 3, _size(said, folder.name))
    mean, std = (_colour(said, key, folder.name) for key in ("image_mean", "image_std"))
    if min(std) <= 0:
        raise TeacherError(f"teacher {folder.name}: image_std {std} in its {FILE} is not above 0")
    return Pixels(mean, std, _size(said, folder.name))


def _flag(said: Mapping[str, Any], key: str, default: bool = True) -> bool:
    """A flag of the file; absent and null both mean the processor's default."""
    value = said.get(key)
    return default if value is None else bool(value)


def _colour(said: Mapping[str, Any], key: str, name: str) -> Colour:
    values = said.get(key)
    values = [values] * 3 if isinstance(values, int | float) else values
    try:
        red, green, blue = map(float, values or ())
    except (TypeError, ValueError) as error:
        raise TeacherError(f"teacher {name}: {key} in its {FILE} is {said.get(key)!r}, not three numbers") from error
    return red, green, blue


def _size(said: Mapping[str, Any], name: str) -> int | None:
    """The side of the square that the network gets, in px."""
    size = said.get("size")
    if _flag(said, "do_center_crop", "crop_size" in said) and said.get("crop_size") is not None:
        size = said["crop_size"]
    elif not _flag(said, "do_resize"):
        return None
    if isinstance(size, Mapping):
        height = size.get("height", size.get("shortest_edge"))
        width = size.get("width", size.get("shortest_edge"))
    else:
        height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    if height != width:
        raise TeacherError(f"teacher {name}: its {FILE} makes inputs of {height} x {width} px; teachers' are square")
    return int(height) if isinstance(height, int) and height > 0 else None
