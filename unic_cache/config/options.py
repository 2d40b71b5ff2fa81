"""How a config's field describes its option: the only place where its help, unit and choices are written.

`pipelines.command.flags` builds the command line from these descriptions, so a flag cannot differ from its field.
"""

from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class About:
    """What the command line says of a field; a required field without help is a positional argument."""

    help: str = ""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    unset: str = ""  # what the default stands for, where the value itself does not say it
    flag: str = ""  # where it is not the field's own name
    once: bool = False  # refuse a second value instead of taking the last


def option(default: T, about: str | About, **more: Any) -> T:
    """A field with a flag: its default, its help text, and what else `About` holds."""
    return field(default=default, metadata=described(about, **more))


def described(about: str | About = "", **more: Any) -> dict[str, About]:
    """The metadata of a field, for `dataclasses.field`."""
    return {"about": about if isinstance(about, About) else About(about, **more)}


TEACHERS = About("A teacher in the cache; repeatable.", "NAME", unset="all", flag="teacher")
WEIGHTS = About("A teacher's weights file; repeatable.", "[NAME=]FILE")
SHARDS = About(
    "WebDataset tars: a path, a glob or braces.", "PATTERN", unset="shards/*.tar, else kept views", once=True
)
CACHE = About("Cache: a folder or a URL.", "DIR")
DEVICE = About("Device: auto, cpu, cuda, cuda:1, ...")
THREADS = About("Threads for decoding and reading.", unset="one per core")
IMG_SIZE = About("Student's input size in pixels.", unset="the model's")
PATCH_SIZE = About("Student's patch size in pixels.", unset="the model's")
WORKER_INDEX = About("Index of this worker, from 0.", unset="from a SLURM array or torchrun, else 0")
NUM_WORKERS = About("How many workers share the work.", unset="from a SLURM array or torchrun, else 1")
