"""The processes that train together, joined by accelerate if a launcher started them together.

Accelerate reads settings from the environment, where `accelerate launch` puts those of its configuration file. Settings
that would change the student are overridden here, or refused: a run follows its own flags alone.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.tracking import get_available_trackers
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from crc32c import crc32c

from pipelines.command.claim import claimed
from pipelines.command.preflight import no_tracker
from pipelines.command.progress import say
from pipelines.command.shares import rank_share
from pipelines.command.signals import SIGNALS
from pipelines.training.batch_parts import batch_parts
from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError, UnicCacheError

T = TypeVar("T")

PATIENCE = timedelta(hours=3)  # of processes that wait for the first one's k-NN, or for a checkpoint to be sent
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP (use --shard-student)",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
    "ACCELERATE_USE_SAGEMAKER": "SageMaker",
}
IGNORED = {  # variable -> (the setting without effect, its default, what is done instead)
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("gradient accumulation", "1", "--accumulate decides"),
    "ACCELERATE_DYNAMO_BACKEND": ("dynamo backend", "no", "--compile decides"),
}
LAUNCHED = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
MPI_RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")
MPI_SIZE = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
PERIOD = 5.0  # seconds between meetings: a signal to one process stops all within about twice this
TRUE = {"1", "true", "yes", "on"}


def make_accelerator(config: DistillConfig, out: Path) -> Accelerator:
    """Accelerate, with its device, precision and processes. ConfigError if the environment asks for anything else."""
    check_settings(config)
    if config.tracker not in {"none", *map(str, get_available_trackers())}:
        raise no_tracker(config.tracker)
    if is_initialized() and (before := AcceleratorState().mixed_precision) != config.precision:
        raise ConfigError(
            f"this Python process has trained in precision {before}, which accelerate keeps for as long as it lives; "
            f"train in precision {config.precision} in another process"
        )
    world = world_size()
    on_cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in TRUE
    if config.precision == "fp16" and on_cpu and not torch.backends.mps.is_available():
        raise ConfigError("--precision fp16 on a CPU: accelerate would train in float32; use bf16, or no")
    if world > 1 and on_cpu:
        check_launched(world)
    if world > 1:
        if os.environ.get("MASTER_PORT") == "0":
            raise ConfigError("MASTER_PORT is 0, where processes cannot meet: use torchrun --standalone, or set a port")
        say(f"process {rank_share().index + 1} of {world}: waiting for the others")
    try:
        accelerator = Accelerator(
            mixed_precision=config.precision,
            cpu=on_cpu and world > 1,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_backend="no",
            log_with=None if config.tracker == "none" else config.tracker,
            project_dir=str(out),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)] if world > 1 else None,
        )
    except (ValueError, RuntimeError, ImportError, NotImplementedError) as error:
        first = str(error).partition("\n")[0]
        if world > 1:
            raise ConfigError(f"the {world} processes of WORLD_SIZE cannot meet: {first}") from error
        raise ConfigError(f"precision {config.precision} or tracker {config.tracker} is unusable: {first}") from error
    if accelerator.num_processes != world:
        raise ConfigError(
            f"the environment says {world} processes (WORLD_SIZE), but accelerate joins {accelerator.num_processes}, "
            f"and each would train alone: {launch_line(world)}, or unset WORLD_SIZE for one process"
        )
    if config.shard_student and accelerator.num_processes == 1:
        raise ConfigError("--shard-student gives each process a part, but there is one process; leave it out")
    batch_parts(config, accelerator.num_processes, accelerator.process_index)  # refused now if they do not fit
    return accelerator


@contextmanager
def run_claimed(out: Path, accelerator: Accelerator) -> Iterator[None]:
    """Claim OUT from the main process. ConfigError in all processes if another run holds it."""
    with ExitStack() as stack:
        on_main(accelerator, lambda: stack.enter_context(claimed(out)))
        yield


def on_main(accelerator: Accelerator, work: Callable[[], T]) -> T | None:
    """The result of `work`, done by the main process while the others wait; None in those.

    If it fails with an error that users can fix, all processes stop: the others with a ConfigError.
    """
    refusal: UnicCacheError | OSError | None = None
    found = None
    if accelerator.is_main_process:
        try:
            found = work()
        except (UnicCacheError, OSError) as error:
            refusal = error
    refuse_together(accelerator, refusal)
    return found


def main_says(accelerator: Accelerator, answer: bool) -> bool:
    """The main process's answer, in all processes, which meet here."""
    if accelerator.num_processes == 1:
        return answer
    own = float(answer and accelerator.is_main_process)
    return bool(accelerator.reduce(torch.tensor([own], device=accelerator.device), "sum").item())


def check_agreed(accelerator: Accelerator, begins_with: Mapping[str, Any]) -> None:
    """ConfigError in all processes unless each has the same plain data to begin with.

    Each has read OUT and the cache by itself, and both may have changed between two looks.
    """
    if accelerator.num_processes == 1:
        return
    own = crc32c(json.dumps(begins_with, sort_keys=True).encode())
    every = accelerator.gather(torch.tensor([own], dtype=torch.int64, device=accelerator.device))
    if bool(every.min() != every.max()):
        raise ConfigError(
            "the processes do not begin alike: another checkpoint in --out, or other commit records in the cache. "
            "Either they do not see the same files, or something was written while they looked; start the command again"
        )


def world_size() -> int:
    """The number of processes in the environment."""
    sizes = [os.environ[name] for name in MPI_SIZE if name in os.environ]
    if "WORLD_SIZE" in os.environ or not sizes:
        return rank_share().count
    return int(sizes[0]) if sizes[0].isdecimal() else 1


def check_launched(world: int) -> None:
    """ConfigError unless a launcher started this process: no other would join it."""
    missing = [name for name in LAUNCHED if name not in os.environ]
    if missing and not any(name in os.environ for name in MPI_RANK):
        raise ConfigError(
            f"WORLD_SIZE is {world} in the environment, but {missing[0]} is not set: no launcher started this process, "
            f"and none would join it. Unset WORLD_SIZE, or {launch_line(world)}"
        )


def launch_line(world: int) -> str:
    """How to start several processes, for messages."""
    if torch.cuda.is_available():
        return f"start them with `accelerate launch --num_processes {world} --module cli distill ...`"
    return f"start them with `torchrun --nproc_per_node {world} -m cli distill ...`"


def check_settings(config: DistillConfig) -> None:
    """Refuse, or report as ignored, what accelerate's own configuration asks for and the run's flags do not."""
    for variable, what in REFUSED.items():
        if os.environ.get(variable, "").lower() in TRUE:
            raise ConfigError(
                f"accelerate is configured for {what} ({variable}), which is not supported; launch with another "
                "--config_file, or with torchrun"
            )
    for variable, (what, default, instead) in IGNORED.items():
        value = os.environ.get(variable, default)
        if value.lower() not in {"", default}:
            say(f"accelerate's {what} {value} ({variable}) has no effect: {instead}")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision.lower() not in {"no", config.precision}:
        say(f"accelerate's mixed precision {precision} has no effect: --precision is {config.precision}")
    device = os.environ.get("ACCELERATE_TORCH_DEVICE", "cpu")
    if device.partition(":")[0] not in {"cpu", "cuda"}:
        raise ConfigError(
            f"ACCELERATE_TORCH_DEVICE is {device!r} in the environment; set it to cpu or cuda, or unset it"
        )
    alone = not any(name in os.environ for name in ("WORLD_SIZE", *MPI_SIZE))
    if alone and os.environ.get("ACCELERATE_USE_CPU", "").lower() in TRUE and "MASTER_PORT" in os.environ:
        say("one process: on CPUs `accelerate launch` needs MPI to start more; `torchrun --nproc_per_node N` does not")


def refuse_together(accelerator: Accelerator, refusal: UnicCacheError | OSError | None) -> None:
    """Raise the main process's refusal there, and a ConfigError in all other processes."""
    refused = main_says(accelerator, refusal is not None)
    if refusal is not None:
        raise refusal
    if refused:
        raise ConfigError("the main process could not go on; its message says why")


class Meetings:
    """Where processes agree whether to stop: one alone would leave the others waiting.

    They meet after steps that all of them know: about every PERIOD seconds by the speed since the last meeting.
    """

    def __init__(self, accelerator: Accelerator, first: int) -> None:
        """`first` is the run's first step."""
        self._accelerator = accelerator
        self._last, self._next, self._since = first, first + 1, time.monotonic()

    def agreed(self, asked: int, done: int) -> int:
        """The signal that any process was asked to stop by, the least of several; 0 if none, or between meetings.

        `asked` is this process's own, or 0; `done` counts steps.
        """
        if self._accelerator.num_processes == 1:
            return asked
        if done < self._next:
            return 0
        now = time.monotonic()
        own = [float(asked == number) for number in SIGNALS] + [(now - self._since) / (done - self._last)]
        *found, seconds = self._accelerator.reduce(torch.tensor(own, device=self._accelerator.device), "mean").tolist()
        steps = min(max(int(PERIOD / max(seconds, 1e-9)), 1), 2 * (done - self._last))
        self._last, self._next, self._since = done, done + steps, now
        return min((int(number) for number, share in zip(SIGNALS, found, strict=True) if share), default=0)
