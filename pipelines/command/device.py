"""The device that a stage runs on, by name."""

import os

import torch

from unic_cache.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """`auto` is a CUDA device, else the CPU; otherwise torch's own names. ConfigError on what is not there.

    Of several CUDA devices a process that torchrun has started takes the one of its LOCAL_RANK, for `cuda` as well.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    rank = os.environ.get("LOCAL_RANK", "")
    if name == "cuda" and rank.isdecimal() and torch.cuda.device_count() > 1:
        name = f"cuda:{int(rank) % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}; try --device cpu") from error
    return device


def device_words(device: torch.device) -> str:
    """A device for people: its name, or the threads of the CPU."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    count = torch.get_num_threads()
    return f"{device} ({count} thread{'s' if count > 1 else ''})" if device.type == "cpu" else str(device)
