"""HED's edge network, as Keras saved it, to timm's names of VGG-16.

HED (Xie and Tu, 2015) is VGG-16 without its classifier, fine-tuned to find edges, with a 1 x 1 convolution behind each
of its five stages. Only the 13 convolutions of the stages are read; those behind them have one channel.

| Keras' | timm's | |
|---|---|---|
| `block1/layers/conv2d/vars/0`, `.../conv2d_1/vars/0`, ... | `features.0.weight`, `.2.weight`, ... | transposed |
| `.../vars/1` | `features.0.bias`, ... | unchanged |

The network expects blue, green and red in 0 to 255, less their means. The catalog's mean and std give exactly those
values in the order red, green, blue, so the first kernel's input channels are reversed. Nothing else changes: both pad
with zeros after the subtraction, so the borders are equal too.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unic_cache.errors import TeacherError

STAGES = (2, 2, 3, 3, 3)  # convolutions; timm numbers a ReLU after each, and a pooling after each stage
DIMENSIONS = {"weight": 4, "bias": 1}
LIMIT_VALUES = 2**24  # of one tensor: a file's header may claim any size


def read_h5(path: Path) -> dict[str, torch.Tensor]:
    """The convolutions' tensors under timm's names (`vgg16`).

    TeacherError without the `h5py` package, for a damaged file, or for another network's file.
    """
    try:
        import h5py
    except ImportError as error:
        raise TeacherError("reading .h5 weights needs the package h5py: pip install 'unic-cache[study]'") from error
    try:
        with h5py.File(path, "r") as file:
            return _convolutions(file)
    except KeyError as error:
        raise TeacherError(f"weights file {path}: not Keras' file of HED (it has no {error.args[0]})") from error
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise TeacherError(f"weights file {path}: it is damaged or not an HDF5 file ({error})") from error


def _convolutions(file: Any) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for theirs, number in _names():
        for part, key in ("weight", f"{theirs}/0"), ("bias", f"{theirs}/1"):
            found = file.get(key)
            if getattr(found, "ndim", None) != DIMENSIONS[part] or found.size > LIMIT_VALUES or found.dtype.kind != "f":
                raise KeyError(key)  # the model's shapes are checked later
            state[f"features.{number}.{part}"] = torch.from_numpy(found[()].astype(np.float32))
        weight_HWIO = state[f"features.{number}.weight"]
        state[f"features.{number}.weight"] = weight_HWIO.permute(3, 2, 0, 1).contiguous()
    state["features.0.weight"] = state["features.0.weight"].flip(1)
    return state


def _names() -> Iterator[tuple[str, int]]:
    """(Keras' group, timm's number) of every convolution, in order."""
    number = 0
    for stage, count in enumerate(STAGES, 1):
        for place in range(count):
            yield f"block{stage}/layers/conv2d{f'_{place}' if place else ''}/vars", number
            number += 2
        number += 1
