"""Checks of FeatureDataset's arguments, whose types nothing else checks: a loop's rank and device, names and flags."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

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


def check_flags(given: Mapping[str, Any]) -> None:
    """ConfigError if a flag is neither True nor False: any text would count as True."""
    for name, value in given.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{name} {value!r} is neither True nor False")


def several(name: str, given: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """The texts of an argument; one text stands for itself. ConfigError for anything else, or for none."""
    if given is None:
        return None
    texts = (given,) if isinstance(given, str) else tuple(given) if isinstance(given, Sequence) else ()
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ConfigError(
            f"{name} {given!r} names nothing; give a name or a list of names, or leave {name} out for all"
        )
    return tuple(dict.fromkeys(texts))


def views_asked(given: Any) -> int | tuple[int, ...] | None:
    """A count of views, or their numbers. ConfigError for anything else."""
    if not isinstance(given, Sequence) or isinstance(given, str):
        check_integers({"views": given})
        return None if given is None else int(given)
    for number in given:
        check_integers({"view": number})
    return tuple(given)
