"""How a config's field describes its option: the only place for its help, unit and choices.

`pipelines.command.flags` builds the command line from these descriptions, so a flag cannot differ from its field.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class About:
    """What the command line says of a field; a required field without help is a positional argument."""

    help: str = ""
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    unset: str = ""  # what the default stands for, if the value itself does not say it
    flag: str = ""  # if it is not the field's name
    formerly: str = ""  # an older name of the flag, which still works
    once: bool = False  # refuse a second value instead of taking the last


def option(default: T, about: str | About, metavar: str | None = None, **more: Any) -> T:
    """A field with a flag: its default, its help, and the rest of `About`."""
    return field(default=default, metadata=described(about, metavar, **more))


def described(about: str | About = "", metavar: str | None = None, **more: Any) -> Mapping[str, About]:
    """Metadata for `dataclasses.field`, for a field without a default."""
    return {"about": about if isinstance(about, About) else About(about, metavar, **more)}


CACHE = About("Cache: a folder or a URL.", "DIR")
CROP_SCALE = "Least and largest share of the image's area in a crop."
DEVICE = About("Device: auto, cpu, cuda, cuda:1, ...")
DEVICES = About("Device: auto, cpu, cuda, cuda:1, ...; or several, a process each: cuda:0,cuda:1, or all (GPUs).")
IMG_SIZE = About("Student's input size in pixels.", unset="the model's")
NUM_WORKERS = About("How many workers share the work.", unset="from a SLURM array or torchrun, else 1")
PATCH_SIZE = About("Student's patch size in pixels.", unset="the model's")
RAY = About("Address of a Ray cluster that shares the work; local starts one here.", "ADDRESS", unset="none")
SHARDS = About(
    "WebDataset tars: a path, a glob or braces.", "PATTERN", unset="shards/*.tar, else kept views", once=True
)
STUDENT = "Student: [timm:]NAME[@SIZE], or a teacher's architecture by its name."
TEACHERS = About("A teacher in the cache; repeatable.", "NAME", unset="all", flag="teacher")
THREADS = About("Threads for decoding and reading.", unset="one per core")
WEIGHTS = About("A teacher's weights file; repeatable.", "[NAME=]FILE")
WORKER_INDEX = About("Index of this worker, from 0.", unset="from a SLURM array or torchrun, else 0")
