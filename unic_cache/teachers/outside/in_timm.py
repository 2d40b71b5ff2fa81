"""A model in timm's layout, on the hub or in a folder: config.json with timm's architecture, and its weights.

It becomes a spec like that of `timm:NAME`, so that rules, sizes, positions and strict loading are the same; only mean,
std, size and arguments come from its own description.
"""

from collections.abc import Mapping
from typing import Any

import timm

from unic_cache.errors import TeacherError
from unic_cache.teachers.derive import Known, spec_of
from unic_cache.teachers.outside.colours import colours
from unic_cache.teachers.outside.folders import ModelFolder
from unic_cache.teachers.outside.names import HUB
from unic_cache.teachers.spec import Option, TeacherSpec, frozen

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
NOT_OURS = {  # arguments of the classifier, of the input that is always RGB, and of weights from elsewhere
    "num_classes", "in_chans", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir",
}  # fmt: skip


def spec_in_timm(folder: ModelFolder, config: Mapping[str, Any], size: int | None) -> TeacherSpec:
    """The spec of a timm model by its config.json. TeacherError if timm lacks it, or the description is incomplete."""
    arch, arguments = str(config["architecture"]), dict(config.get("model_args") or {})
    said = config.get("pretrained_cfg", config)
    if not timm.is_model(arch):
        raise TeacherError(f"teacher {folder.name}: timm {timm.__version__} has no architecture {arch!r}")
    try:
        channels, height, width = said["input_size"]
        mean, std = colours(said["mean"], said["std"], f"teacher {folder.name}: its config.json's")
    except KeyError as error:
        raise TeacherError(f"teacher {folder.name}: its config.json lacks {error}") from error
    if channels != 3 or height != width or arguments.get("in_chans", 3) != 3:
        raise TeacherError(f"teacher {folder.name}: its input {said['input_size']} is no square of three colours")
    tagged = f"{arch}.{said['tag']}" if said.get("tag") else arch
    registered = timm.is_model_pretrained(tagged)
    own = timm.get_pretrained_cfg(tagged if registered else arch)
    sized = bool(said.get("fixed_input_size", own is not None and own.fixed_input_size))
    side = arguments.get("img_size", width) if sized else width
    side = int(side if isinstance(side, int) else side[-1])
    options: dict[str, Option] = {key: frozen(value) for key, value in arguments.items() if key not in NOT_OURS}
    if sized:
        options["img_size"] = side
    known = Known(folder.name, tagged if registered else arch, tagged, sized, mean, std, tuple(options.items()))
    origin = {
        "about": f"timm's {arch} of {folder.place}",
        "source": folder.name,
        "published": folder.published if folder.scheme != HUB else f"{folder.published}, commit {folder.revision}",
        "licence": said.get("license") or folder.licence(),
    }
    return spec_of(known, side, size, origin)
