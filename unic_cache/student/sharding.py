"""A student that processes hold in parts: each has its share of every parameter, gradient and AdamW state (FSDP2).

Each block of the encoder is gathered for its own forward and backward pass. All other parameters, the projectors' too,
are gathered together: the ladder reads the weights of many heads at once.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(student: nn.Module, device: torch.device, processes: int) -> None:
    """Split the student, which is on `device`, over the processes, in place; each must have all of it, and the same."""
    mesh = init_device_mesh(device.type, (processes,))
    encoder: Any = student.encoder
    blocks = getattr(encoder, "blocks", None)
    for block in blocks.children() if isinstance(blocks, nn.Module) else ():
        fully_shard(block, mesh=mesh)
    # Freed after each forward pass too: else the student would have whole parameters, other objects, until a backward
    fully_shard(student, mesh=mesh, reshard_after_forward=True)


def take_state(optimizer: torch.optim.Optimizer, student: nn.Module, state: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Give an optimizer of a split student the state {parameter's name: {key: whole tensor}}."""
    parameter: Any
    for name, parameter in student.named_parameters():
        for key, value in state.get(name, {}).items():
            split = isinstance(parameter, DTensor) and key != "step"
            optimizer.state[parameter][key] = (
                distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
                if split
                else value
            )


def whole(value: Tensor) -> Tensor:
    """A tensor, gathered if processes hold it in parts: then all of them must ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(values: Sequence[Tensor]) -> list[Tensor]:
    """This process's parts, which share memory with the tensors."""
    return [value.to_local() if isinstance(value, DTensor) else value for value in values]
