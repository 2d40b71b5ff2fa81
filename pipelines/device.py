"""The device that a stage runs on, by name."""

import torch

from unic_cache.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """`auto` is the first CUDA device, else the CPU; otherwise torch's own names. ConfigError on what is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}; try --device cpu") from error
    return device
