"""torch.compile for the student's encoder, tried before anything else is done."""

import torch

from pipelines.command.failures import reason
from unic_cache.errors import ConfigError


def check_compiler(device: torch.device) -> None:
    """ConfigError if torch.compile does not work on this machine: found on a single sum, in seconds.

    A run never goes on without it: it could not be resumed elsewhere to the same rounding.
    """
    try:
        torch.compile(lambda values: (values + 1).sum())(torch.zeros(8, device=device))
    except Exception as error:  # whatever the compiler and its backend raise
        needed = "Triton" if device.type == "cuda" else "a C++ compiler, such as g++"
        raise ConfigError(
            f"--compile needs torch.compile, which takes {needed}, and it fails here: {reason(error)}. Install it, or "
            "leave out --compile"
        ) from error
