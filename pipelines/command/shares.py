"""Which share of the work is this process's, by SLURM's arrays or torchrun's ranks, and how that is said.

Nothing here imports torch. A share is never taken without a word, and one that cannot be told is refused.
"""

import os
from dataclasses import dataclass

from unic_cache.errors import ConfigError

REMEDY = "say --worker-index and --num-workers"
SHARING = {"extract", "recode", "distill"}  # commands that take a share, or train together
SIZES = {  # launchers that share nothing out by themselves: how many processes, and which one
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "MPI": ("PMI_SIZE", "PMI_RANK"),
}


@dataclass(frozen=True)
class Share:
    """Worker `index` of `count`; `origin` says who says so."""

    index: int = 0
    count: int = 1
    origin: str = ""


def environment_share() -> Share:
    """The share of a SLURM array's task or of a torchrun process, else all. ConfigError where it is unclear."""
    array, ranks = array_share(), rank_share()
    if array.count > 1 and ranks.count > 1:
        raise ConfigError(
            f"the environment says worker {array.index + 1} of {array.count} ({array.origin}), and also "
            f"{ranks.index + 1} of {ranks.count} ({ranks.origin}); {REMEDY}"
        )
    return ranks if ranks.count > 1 else array


def array_share() -> Share:
    """The place of a SLURM array's task among the array's tasks."""
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        return Share()
    place = _number("SLURM_ARRAY_TASK_ID", "0") - _number("SLURM_ARRAY_TASK_MIN", "0")
    index, rest = divmod(place, max(_number("SLURM_ARRAY_TASK_STEP", "1"), 1))
    count = _number("SLURM_ARRAY_TASK_COUNT", "1")
    if rest or not 0 <= index < count:
        raise ConfigError(f"the array's task numbers are not evenly spaced; {REMEDY}")
    return Share(index, count, "SLURM array")


def rank_share() -> Share:
    """The rank of a process that torchrun, or another launcher with its variables, has started."""
    index, count = _number("RANK", "0"), _number("WORLD_SIZE", "1")
    if count > 1 and "RANK" not in os.environ:
        raise ConfigError(f"WORLD_SIZE is {count} in the environment, but RANK is not there; unset it, or {REMEDY}")
    if not index < count:
        raise ConfigError(
            f"RANK is {index} in the environment, but WORLD_SIZE is {os.environ.get('WORLD_SIZE', 'not there')}; "
            f"unset both, or {REMEDY}"
        )
    return Share(index, count, "RANK and WORLD_SIZE")


def share_lines(index: int, count: int, mine: int, units: int) -> list[str]:
    """What to say of this process's share of the units; nothing where it does all of them, alone."""
    if count > 1:
        try:
            found = environment_share()
        except ConfigError:
            found = Share()
        said = found.origin if (found.index, found.count) == (index, count) else f"--worker-index {index}"
        return [f"worker {index + 1} of {count} ({said}): {mine:,} of {units:,} units are this worker's"]
    for launcher, (size, rank) in SIZES.items():
        if os.environ.get(size, "1") not in {"0", "1"} and rank in os.environ:
            return [
                f"{launcher} has started {os.environ[size]} processes, and this one does all {units:,} units; to share "
                f"them, say --worker-index ${rank} --num-workers ${size}"
            ]
    return []


def unshared_lines(command: str) -> list[str]:
    """What to say where torchrun has started several processes of a command that shares nothing out."""
    try:
        found = rank_share()
    except ConfigError:
        return []
    if command in SHARING or found.count == 1:
        return []
    return [f"process {found.index + 1} of {found.count}: `{command}` is not shared out, and each does all of it"]


def _number(name: str, default: str) -> int:
    text = os.environ.get(name, default)
    if not text.isdecimal():
        raise ConfigError(f"{name} is {text!r} in the environment, not a number; {REMEDY}")
    return int(text)
