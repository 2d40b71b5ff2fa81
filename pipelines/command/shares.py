"""This process's share of the work, from a SLURM array or torchrun's ranks, without torch.

A share taken from the environment is always printed, and an unclear one is refused.
"""

import os
from dataclasses import dataclass

from unic_cache.errors import ConfigError

REMEDY = "give --worker-index and --num-workers"
SHARING = {"extract", "recode", "distill"}  # commands that split the work or train together
SIZES = {  # launchers whose processes would all do everything: variables of size and rank
    "srun": ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    "mpirun": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "MPI": ("PMI_SIZE", "PMI_RANK"),
}


@dataclass(frozen=True)
class Share:
    """Worker `index` of `count`, by `origin`."""

    index: int = 0
    count: int = 1
    origin: str = ""


def environment_share() -> Share:
    """The share of a SLURM array task or torchrun process, by default everything. ConfigError if unclear."""
    array, ranks = array_share(), rank_share()
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if array.count > 1 and ranks.count == 1 and tasks not in {"0", "1"}:
        raise ConfigError(
            f"srun started {tasks} processes in task {array.index + 1} of {array.count} of a SLURM array, and each "
            f"would do the task's whole share; start one process a task, or {REMEDY} of all of them"
        )
    if array.count > 1 and ranks.count > 1:
        raise ConfigError(
            f"the environment says worker {array.index + 1} of {array.count} ({array.origin}), and also "
            f"{ranks.index + 1} of {ranks.count} ({ranks.origin}); {REMEDY}"
        )
    return ranks if ranks.count > 1 else array


def array_share() -> Share:
    """The share of a SLURM array task. ConfigError if the task numbers are not evenly spaced."""
    if "SLURM_ARRAY_TASK_ID" not in os.environ:
        return Share()
    place = _number("SLURM_ARRAY_TASK_ID", "0") - _number("SLURM_ARRAY_TASK_MIN", "0")
    index, rest = divmod(place, max(_number("SLURM_ARRAY_TASK_STEP", "1"), 1))
    count = _number("SLURM_ARRAY_TASK_COUNT", "1")
    if rest or not 0 <= index < count:
        raise ConfigError(f"the array's task numbers are not evenly spaced; {REMEDY}")
    return Share(index, count, "SLURM array")


def rank_share() -> Share:
    """The share of a process started by torchrun, or by a launcher with its variables. ConfigError if unclear."""
    index, count = _number("RANK", "0"), _number("WORLD_SIZE", "1")
    if count > 1 and "RANK" not in os.environ:
        raise ConfigError(f"WORLD_SIZE is {count} in the environment, but RANK is not set; unset it, or {REMEDY}")
    if not index < count:
        raise ConfigError(
            f"RANK is {index} in the environment, but WORLD_SIZE is {os.environ.get('WORLD_SIZE', 'not set')}; "
            f"unset both, or {REMEDY}"
        )
    return Share(index, count, "RANK and WORLD_SIZE")


def local_rank() -> tuple[int, str] | None:
    """This process's number among those started on its machine, and the variable that says so; None if it is alone.

    torchrun inside srun sets both variables; its own counts. ConfigError if it is not a number.
    """
    if os.environ.get("LOCAL_RANK"):
        return _number("LOCAL_RANK", "0"), "LOCAL_RANK"
    if os.environ.get("SLURM_STEP_NUM_TASKS", "1") in {"0", "1"} or not os.environ.get("SLURM_LOCALID"):
        return None
    return _number("SLURM_LOCALID", "0"), "SLURM_LOCALID"


def check_flags(index: int, count: int) -> None:
    """ConfigError if --worker-index and --num-workers contradict a clear share in the environment.

    Flags that are the same for all processes would give them all the same share. A share may be finer or coarser than
    the environment's: worker 5 of 8 is one of task 2's of 4, by 5 // 2 or by 5 % 4; else they differ.
    """
    try:
        found = environment_share()
    except ConfigError:
        return  # the flags say what the environment does not
    if not 0 <= index < count:
        return  # the config's own check says it
    (few, coarse), (many, fine) = sorted([(count, index), (found.count, found.index)])
    if many % few or coarse not in {fine // (many // few), fine % few}:
        variables = "SLURM_ARRAY_TASK_ID" if found.origin.startswith("SLURM") else "RANK and WORLD_SIZE"
        raise ConfigError(
            f"--worker-index {index} --num-workers {count} do not fit this process, which is {found.index + 1} of "
            f"{found.count} ({found.origin}): others would do the same share; leave out the flags, compute them from "
            f"{variables}, or unset {'it' if 'ID' in variables else 'both'}"
        )


def share_lines(index: int, count: int, mine: int, units: int) -> list[str]:
    """Lines about this process's share, `mine` of `units` units; none if it does all of them, alone."""
    if count > 1:
        try:
            found = environment_share()
        except ConfigError:
            found = Share()
        said = found.origin if (found.index, found.count) == (index, count) else f"--worker-index {index}"
        return [f"worker {index + 1} of {count} ({said}): {mine:,} of {units:,} units are this worker's"]
    return whole_lines(count, f"all {units:,} units")


def whole_lines(count: int, work: str) -> list[str]:
    """A line if this process is the only worker and does all `work`, but a launcher started several; else none."""
    for launcher, (size, rank) in SIZES.items() if count == 1 else ():
        if os.environ.get(size, "1") not in {"0", "1"} and rank in os.environ:
            return [
                f"{launcher} started {os.environ[size]} processes, and this one does {work}; to share "
                f"them, give --worker-index ${rank} --num-workers ${size}"
            ]
    return []


def unshared_lines(command: str) -> list[str]:
    """Lines to print if torchrun started several processes of a command that does not split its work."""
    try:
        found = rank_share()
    except ConfigError:
        return []
    if command in SHARING or found.count == 1:
        return []
    return [f"process {found.index + 1} of {found.count}: `{command}` does not split its work, so each does all of it"]


def _number(name: str, default: str) -> int:
    text = os.environ.get(name, default)
    if not text.isdecimal():
        raise ConfigError(f"{name} is {text!r} in the environment, not a number; {REMEDY}")
    return int(text)
