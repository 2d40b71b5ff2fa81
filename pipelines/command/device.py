"""The device that a stage runs on."""

import os

import torch

from unic_cache.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """The device of torch's name, or for `auto` CUDA if available, else the CPU. ConfigError if it cannot be used.

    A process started by torchrun takes the CUDA device of its LOCAL_RANK, for `auto` and `cuda`.
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
    """A device in words: the GPU's name, or the CPU's number of threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    count = torch.get_num_threads()
    return f"{device} ({count} thread{'s' if count > 1 else ''})" if device.type == "cpu" else str(device)
