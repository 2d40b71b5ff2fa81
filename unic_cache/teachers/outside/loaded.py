"""What every loader of a teacher outside timm gives."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from unic_cache.errors import TeacherError, WeightsError
from unic_cache.teachers.outside.files import INDEX
from unic_cache.teachers.spec import TeacherSpec
from unic_cache.teachers.token_rules import Tokens
from unic_cache.teachers.weights import file_sha256, state_sha256
from unic_cache.weights.untrained import check_values

CANNOT = (  # what networks and libraries raise on what they cannot take
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NotImplementedError, OSError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip


@contextmanager
def running(spec: TeacherSpec) -> Iterator[None]:
    """Makes a TeacherError of what a network raises in its forward pass, but for a lack of device memory."""
    try:
        yield
    except (torch.OutOfMemoryError, TeacherError):
        raise
    except CANNOT as error:
        raise TeacherError(
            f"teacher {spec.name}: {spec.arch} cannot run at {spec.input_size} px: {type(error).__name__}: {error}"
        ) from error


class Network(nn.Module):
    """Normalised images (B, 3, H, W) to every kind of its spec: the forward pass of a teacher outside timm."""

    def forward(self, images_BCHW: torch.Tensor) -> Tokens:
        """Summary tokens (B, D) and grid tokens (B, T, D) by kind."""
        raise NotImplementedError


class Loaded(NamedTuple):
    """A network with its weights, and what they are."""

    network: Network
    weights_sha256: str
    file: Path | None  # None if the weights come with the module's own code
    file_sha256: str | None  # None without one file that holds them all


def tensors_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """A network's state dict without what is no tensor, which a module of someone's own may keep there."""
    return {name: value for name, value in network.state_dict().items() if isinstance(value, torch.Tensor)}


def loaded(network: Network, state: Mapping[str, torch.Tensor], file: Path | None, where: str) -> Loaded:
    """A network and the tensors that it was filled with, hashed. TeacherError for values that cannot be weights."""
    own = {tensor.dtype for tensor in tensors_of(network).values()}  # a table of bytes may be the network's own
    short = next(
        (name for name, x in state.items() if x.dtype.itemsize < 2 and x.dtype not in {*own, torch.bool}), None
    )
    if short is not None:
        raise TeacherError(
            f"{where}: {short} is {str(state[short].dtype).removeprefix('torch.')}, a quantized copy; give weights of "
            "float32, float16 or bfloat16"
        )
    try:
        check_values(network.state_dict(), network, where)
    except WeightsError as error:
        raise TeacherError(str(error)) from error
    alone = None if file is None or file.name.endswith(INDEX) else file  # an index says nothing of what its parts hold
    return Loaded(network, state_sha256(dict(state)), file, None if alone is None else file_sha256(alone))
