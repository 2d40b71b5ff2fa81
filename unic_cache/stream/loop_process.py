"""The process that a training loop of one's own runs in: which of how many it is, and its device."""

import os

import torch
from torch import distributed

from unic_cache.config.bounds import check_integers
from unic_cache.errors import ConfigError


def this_rank(rank: int | None, world: int | None) -> tuple[int, int]:
    """(rank, world): those given, or torch.distributed's.

    ConfigError if only one is given, or if torchrun started several processes that have not met yet.
    """
    if (rank is None) != (world is None):
        raise ConfigError("rank and world belong together; give both, or neither")
    if rank is None or world is None:
        if distributed.is_available() and distributed.is_initialized():
            return int(distributed.get_rank()), int(distributed.get_world_size())
        processes = os.environ.get("WORLD_SIZE", "1")
        if processes != "1":
            raise ConfigError(
                f"WORLD_SIZE says that there are {processes} processes, but torch.distributed is not initialized: make "
                "the dataset after init_process_group, or give rank and world"
            )
        return 0, 1
    check_integers({"world": world, "rank": rank})
    if not rank < world:
        raise ConfigError(f"rank {rank} is not one of 0 to {world - 1}")
    return rank, world


def usable_device(name: str | torch.device, numpy: bool) -> torch.device:
    """The device. ConfigError if it is not there, or if numpy arrays would have to be on another than the CPU."""
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {str(name)!r} cannot be used: {str(error).splitlines()[0]}") from error
    if numpy and device.type != "cpu":
        raise ConfigError(f"numpy arrays are on the CPU, but device is {device}; leave numpy or device out")
    return device
