"""What an image processor of transformers says of pixels: size, mean and std, by its JSON and without its code.

Its own resizing is not used: a view becomes a network's input by one rule (`unic_cache.inputs`).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from unic_cache.errors import TeacherError
from unic_cache.teachers.outside.colours import Colour, colours
from unic_cache.teachers.outside.folders import ModelFolder, read_json

FILE, JOINT = "preprocessor_config.json", "processor_config.json"
STEPS = ("do_flip_channel_order", "do_grayscale", "rescale_offset")  # that change more than mean and std


class Pixels(NamedTuple):
    """Of pixels in [0, 1]; the size is that of the crop, None if the file says none."""

    mean: Colour
    std: Colour
    size: int | None


def pixels_of(folder: ModelFolder) -> Pixels:
    """The pixels that a model's processor makes. TeacherError without one, or for what is no plain mean and std."""
    path = folder.find(FILE, JOINT)
    if not isinstance(path, Path):
        raise TeacherError(
            f"teacher {folder.name}: its mean and std are not known: {path}; the processor's save_pretrained writes "
            f"them to {FILE}"
        )
    content, whose = read_json(path, folder.name), f"teacher {folder.name}: its {path.name}"
    said = content.get("image_processor") if path.name == JOINT else content
    if not isinstance(said, Mapping):
        raise TeacherError(f"{whose} says nothing of images; the processor's save_pretrained writes {FILE}")
    factor = float(said.get("rescale_factor") or 1 / 255) if _flag(said, "do_rescale") else 1
    odd = next((key for key in STEPS if said.get(key)), None)
    if odd is not None or not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        why = f"scales pixels by {factor}, not by 1/255 to [0, 1]" if odd is None else f"has {odd}"
        raise TeacherError(f"{whose} {why}; wrap the model as py:package.module:factory")
    if not _flag(said, "do_normalize"):
        return Pixels((0.0,) * 3, (1.0,) * 3, _size(said, whose))
    mean, std = ([x] * 3 if isinstance(x, int | float) else x for x in (said.get("image_mean"), said.get("image_std")))
    return Pixels(*colours(mean, std, f"{whose}'s"), _size(said, whose))


def _flag(said: Mapping[str, Any], key: str, default: bool = True) -> bool:
    """A flag of the file; absent and null both mean the processor's default."""
    value = said.get(key)
    return default if value is None else bool(value)


def _size(said: Mapping[str, Any], whose: str) -> int | None:
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
    if height is None and width is None:
        return None
    if height != width or isinstance(height, bool) or not isinstance(height, int) or height < 1:
        raise TeacherError(f"{whose} makes inputs of {height!r} x {width!r} px; teachers' are square")
    return height
