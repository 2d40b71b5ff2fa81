"""A weights file's tensors under timm's names: found, renamed and checked, always by name.

| layout, as published | wrapper | to timm's names |
|---|---|---|
| timm, dino, ibot, dbot | flat, `state_dict`, `teacher` or `model` | unchanged |
| deit3 | `model` | gamma_1, gamma_2 -> ls1.gamma, ls2.gamma |
| efficientnet-lite0 | flat | see lite0.py |
| saliency-onnx | ONNX graph | see saliency.py |
| hed-keras | Keras' HDF5 | see hed.py |

Every layout also accepts timm's own names, under any prefix. Classifiers are dropped. Averaged copies (`model_ema`)
beside a wrapper, and optimizers, are ignored.
"""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from unic_cache.errors import TeacherError, WeightsError
from unic_cache.teachers.hed import read_h5
from unic_cache.teachers.lite0 import timm_name as lite0_name
from unic_cache.teachers.saliency import read_onnx
from unic_cache.weights.file import HDF5, NO_READERS, ONNX, read_checkpoint
from unic_cache.weights.state_dicts import Found, Shapes, State, find, first_names

SHOWN = 3  # offenders named in an error
PATCHES = "patch_embed.proj.weight"


def content_of(path: Path, layout: str, teacher: str) -> Any:
    """A weights file's content. TeacherError if it cannot be read."""
    try:
        return read_checkpoint(path, _READERS.get(layout, NO_READERS))
    except WeightsError as error:
        raise TeacherError(f"teacher {teacher}: {error}") from error


def named_state(
    content: Any, path: Path, layout: str, shapes: Shapes, classifiers: tuple[str, ...], teacher: str
) -> Found:
    """The teacher's tensors in a file's content, under timm's names if known, unchecked. TeacherError if ambiguous."""
    try:
        found = find(content, shapes, path, _LAYOUTS.get(layout, str))
    except WeightsError as error:
        raise TeacherError(f"teacher {teacher}: {error}") from error
    dropped = {f"{name}.{part}" for name in classifiers for part in ("weight", "bias")} - set(shapes)
    tensors = {name: tensor for name, tensor in found.tensors.items() if name not in dropped}
    return dataclasses.replace(found, tensors=tensors)


def fits(state: State, shapes: Shapes) -> bool:
    """Whether names and shapes equal the model's."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes


def check_fit(state: State, shapes: Shapes, teacher: str, origin: str, meant: bool = True) -> None:
    """TeacherError naming up to three offenders, with both shapes, unless the weights fit the model exactly.

    For another network's file (not `meant`) it shows the file's first names.
    """
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    other = [name for name, shape in shapes.items() if found.get(name, shape) != shape]
    offenders = [f"{name} is {found[name]}, expected {shapes[name]}" for name in other]
    offenders += [f"{name} {shape} is missing" for name, shape in shapes.items() if name not in found]
    offenders += [f"{name} {shape} is not part of it" for name, shape in found.items() if name not in shapes]
    if offenders:
        more = f"; and {len(offenders) - SHOWN} more" if len(offenders) > SHOWN else ""
        own = "" if meant else f" The file's own names: {first_names(state)}."
        raise TeacherError(
            f"the weights of teacher {teacher} from {origin} do not fit its model: "
            f"{'; '.join(offenders[:SHOWN])}{more}. Are they another model's?{own}{_patches(state, shapes)}"
        )


def _patches(state: State, shapes: Shapes) -> str:
    """What another patch kernel means, if that is what does not fit."""
    theirs, ours = state.get(PATCHES), shapes.get(PATCHES, ())
    if theirs is None or theirs.ndim != 4 or len(ours) != 4 or tuple(theirs.shape) == ours:
        return ""
    if theirs.shape[1] != ours[1]:
        return f" They are of images with {theirs.shape[1]} channels, not {ours[1]}."
    if theirs.shape[2:] != ours[2:]:
        return (
            f" They are of a network with {theirs.shape[-1]} px patches, not {ours[-1]}: patch kernels are not "
            "resampled; name the timm model with that patch size."
        )
    return ""


def state_sha256(state: State) -> str:
    """sha256 over the tensors by sorted name: name, dtype, shape and bytes of each, whatever the file format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_READERS: dict[str, Mapping[str, Callable[[Path], Any]]] = {
    "saliency-onnx": {ONNX: read_onnx},
    "hed-keras": {HDF5: read_h5},
}
_LAYOUTS: dict[str, Callable[[str], str]] = {
    "deit3": lambda name: re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name),
    "efficientnet-lite0": lite0_name,
}
