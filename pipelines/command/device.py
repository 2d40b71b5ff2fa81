"""The device, or devices, that a stage runs on."""

import os

import torch

from pipelines.command.progress import say
from pipelines.command.shares import local_rank
from unic_cache.ahead import processes_here
from unic_cache.config.devices import ALL, device_names
from unic_cache.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """The device of torch's name, or for `auto` CUDA if available, else the CPU. ConfigError if it cannot be used.

    Of several GPUs, `auto` and `cuda` mean the first, or the one of LOCAL_RANK (torchrun) or SLURM_LOCALID (srun).
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.device_count() > 1:
        name = own_gpu(torch.cuda.device_count())
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}; try --device cpu") from error
    return device


def own_gpu(count: int) -> str:
    """This process's one of several GPUs. ConfigError if more processes than GPUs were started on this machine."""
    found = local_rank()
    if found is None:
        return "cuda"
    rank, variable = found
    if rank >= count:
        raise ConfigError(
            f"{variable} is {rank} in the environment, but this machine has {count} GPUs, 0 to {count - 1}; start at "
            f"most {count} processes on it"
        )
    return f"cuda:{rank}"


def devices_of(text: str) -> tuple[str, ...]:
    """The devices that `text` lists, each to be used by a process of its own; a single one may still be a word.

    ConfigError if one does not exist, or if torchrun or srun has already started a process for each.
    """
    names, count = device_names(text), torch.cuda.device_count()
    if text == ALL:
        if not count:
            raise ConfigError("device 'all' means all GPUs of this machine, but torch finds none; try --device cpu")
        names = tuple(f"cuda:{number}" for number in range(count))
    if len(names) == 1:
        if text in {"auto", "cuda"} and count > 1 and local_rank() is None:
            say(f"this machine has {count} GPUs, and --device {text} uses the first; --device all uses all")
        return names
    for name in names:
        _check_exists(name, count)
    rank = local_rank()
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1")  # such as 4 or 4(x2)
    if rank is not None and (processes_here() > 1 or rank[0] > 0 or tasks.partition("(")[0] not in {"", "0", "1"}):
        raise ConfigError(
            f"device {text!r} starts a process for each device, but {rank[1]} is set: a process for each was started "
            "already; leave --device out, or start one process"
        )
    return names


def _check_exists(name: str, count: int) -> None:
    """ConfigError unless torch knows the device; a GPU is only counted, not opened."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}; try --device cpu") from error
    if device.type == "cuda" and (device.index or 0) >= count:
        has = f"GPUs cuda:0 to cuda:{count - 1}" if count > 1 else "one GPU, cuda:0" if count else "no GPU"
        raise ConfigError(f"device {name!r} cannot be used: this machine has {has}")


def device_words(device: torch.device) -> str:
    """A device in words: the GPU's name, or the CPU's number of threads."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    count = torch.get_num_threads()
    return f"{device} ({count} thread{'s' if count > 1 else ''})" if device.type == "cpu" else str(device)
