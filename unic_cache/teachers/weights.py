"""A weights file to a state dict in timm's keys: read without unpickling objects, unwrapped, renamed, checked.

What the authors publish, and what becomes of it:

| layout | wrapper | into timm's keys |
|---|---|---|
| timm, dino, ibot, dbot | flat, `state_dict`, `teacher` or `model` | as it is |
| deit3 | `model` | gamma_1, gamma_2 -> ls1.gamma, ls2.gamma |
| efficientnet-lite0 | flat | timm's names in the same order, without `_fc` |
| saliency-onnx | ONNX graph | see saliency.py |

Every layout also takes timm's own keys. Classifiers are dropped. Averaged copies (`model_ema`) beside a wrapper, and
optimizers, are left alone.
"""

import argparse
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import safetensors
import safetensors.torch
import torch

from unic_cache.errors import TeacherError
from unic_cache.teachers.saliency import read_onnx

State: TypeAlias = dict[str, torch.Tensor]
Shapes: TypeAlias = dict[str, tuple[int, ...]]

WRAPPERS = ("state_dict", "model", "teacher")
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".onnx")
SHOWN = 3  # offenders named in an error


def state_from_file(path: Path, layout: str, shapes: Shapes, classifiers: tuple[str, ...]) -> State:
    """The tensors of `path` under timm's keys, not yet checked against the model's `shapes`.

    TeacherError where the file is missing, of another kind, damaged, or holds pickled objects beyond tensors.
    """
    unwrapped = _without_prefixes(_unwrapped(_read(path, layout), path))
    renamed = _LAYOUTS[layout](unwrapped, shapes)
    dropped = {f"{name}.{part}" for name in classifiers for part in ("weight", "bias")}
    return {name: tensor for name, tensor in renamed.items() if name not in dropped}


def fits(state: State, shapes: Shapes) -> bool:
    """Whether names and shapes are exactly the model's."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes


def check_fit(state: State, shapes: Shapes, teacher: str, origin: str) -> None:
    """TeacherError naming up to three offenders, with both shapes, unless the weights fit the model exactly."""
    offenders = [
        *(
            f"{name} is {tuple(state[name].shape)}, expected {shape}"
            for name, shape in shapes.items()
            if name in state and tuple(state[name].shape) != shape
        ),
        *(f"{name} {shape} is missing" for name, shape in shapes.items() if name not in state),
        *(f"{name} {tuple(tensor.shape)} is not part of it" for name, tensor in state.items() if name not in shapes),
    ]
    if offenders:
        more = f"; and {len(offenders) - SHOWN} more" if len(offenders) > SHOWN else ""
        raise TeacherError(
            f"the weights of teacher {teacher} from {origin} do not fit its model: "
            f"{'; '.join(offenders[:SHOWN])}{more}. Are they another model's?"
        )


def state_sha256(state: State) -> str:
    """sha256 over the tensors in order of their names: name, dtype, shape and bytes of each, whatever the file was."""
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


def _read(path: Path, layout: str) -> Any:
    if not path.is_file():
        raise TeacherError(f"weights file {path}: there is no such file")
    if path.suffix not in SUFFIXES or (path.suffix == ".onnx" and layout != "saliency-onnx"):
        raise TeacherError(
            f"weights file {path}: cannot read a {path.suffix or 'nameless'} file; give .safetensors or .pth"
        )
    try:
        if path.suffix == ".onnx":
            return read_onnx(path)
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, weights_only=True, map_location="cpu")
    except safetensors.SafetensorError as error:
        raise TeacherError(f"weights file {path}: it is damaged or no safetensors file ({error})") from error
    except TeacherError:
        raise
    except Exception as error:  # torch.load documents no errors of its own; what a damaged file raises varies
        raise TeacherError(f"weights file {path}: {_why_unread(error)}") from error


def _why_unread(error: Exception) -> str:
    found = re.search(r"(?:Unsupported \w+|GLOBAL|Trying to call reduce for|instantiate)[^.\n]*", str(error))
    if found is None:
        return f"it is damaged or no PyTorch file ({type(error).__name__}: {str(error).partition(chr(10))[0][:120]})"
    return (
        f"it holds pickled objects beyond tensors ({found[0][:120]}) and is refused, since unpickling can run "
        "any code; where you trust it, convert its tensors to .safetensors elsewhere"
    )


def _unwrapped(raw: Any, path: Path) -> State:
    while isinstance(raw, Mapping):
        inner = next((raw[key] for key in WRAPPERS if isinstance(raw.get(key), Mapping)), None)
        if inner is None:
            break
        raw = inner
    tensors = (
        {str(key): value for key, value in raw.items() if torch.is_tensor(value)} if isinstance(raw, Mapping) else {}
    )
    if not tensors:
        raise TeacherError(f"weights file {path}: no tensors in it, neither flat nor under {', '.join(WRAPPERS)}")
    return tensors


def _without_prefixes(state: State) -> State:
    """Without `module.` of data parallelism; of a network with a head of its own, its `backbone.` alone."""
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    backbone = {name.removeprefix("backbone."): t for name, t in state.items() if name.startswith("backbone.")}
    return backbone or state


def _as_it_is(state: State, _shapes: Shapes) -> State:
    return state


def _deit3(state: State, _shapes: Shapes) -> State:
    return {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name): tensor for name, tensor in state.items()}


def _efficientnet_lite0(state: State, shapes: Shapes) -> State:
    kept = [tensor for name, tensor in state.items() if not name.startswith("_fc.")]
    return dict(zip(shapes, kept, strict=True)) if "_conv_stem.weight" in state and len(kept) == len(shapes) else state


_LAYOUTS: dict[str, Callable[[State, Shapes], State]] = {
    "timm": _as_it_is,
    "dino": _as_it_is,
    "ibot": _as_it_is,
    "dbot": _as_it_is,
    "deit3": _deit3,
    "efficientnet-lite0": _efficientnet_lite0,
    "saliency-onnx": _as_it_is,
}
