"""What commands share: their flags, and what the environment says of workers."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from pipelines.command.shares import environment_share, unshared_lines
from unic_cache.config import DTYPES, RECIPES
from unic_cache.errors import ConfigError

T = TypeVar("T")

CACHE = click.option("--cache", default="cache", show_default=True, metavar="DIR", help="The cache's folder.")


def said_once(context: click.Context, parameter: click.Parameter, patterns: tuple[str, ...]) -> str | None:
    """The one value of an option that would otherwise silently take its last."""
    del context
    if len(patterns) > 1:
        raise click.BadParameter("say it once; braces join patterns, as in '{a,b}/*.tar'", param=parameter)
    return patterns[0] if patterns else None


SHARDS = click.option(
    "--shards",
    multiple=True,
    callback=said_once,
    metavar="PATTERN",
    help="WebDataset tars: a path, a glob or braces. [default: shards/*.tar, else kept views]",
)
THREADS = click.option("--threads", default=0, show_default="one a core", help="Threads that decode and read.")


class Examples(click.Command):
    """A command whose help ends with examples."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples as they are."""
        del ctx
        with formatter.section("Examples"):
            for line in self.examples.strip().splitlines():
                formatter.write(f"  {line.strip()}\n")


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM is answered like Ctrl-C."""
    raise KeyboardInterrupt


def on_terminal() -> bool:
    """Whether there is a person to be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def worker_from_environment() -> tuple[int, int]:
    """(index, number of workers) of a SLURM array's task or of a torchrun process; (0, 1) elsewhere."""
    try:
        share = environment_share()
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    return share.index, share.count


def check_both_said() -> None:
    """UsageError where a worker's index comes from a flag and the number from elsewhere, or the reverse."""
    context = click.get_current_context()
    said = [
        n for n in ("worker_index", "num_workers") if context.get_parameter_source(n) is ParameterSource.COMMANDLINE
    ]
    if len(said) == 1:
        raise click.UsageError("--worker-index and --num-workers belong together; say both, or neither")


@contextlib.contextmanager
def ready(config: T) -> Iterator[T]:
    """The config, after a look at its names and paths that needs no torch; meanwhile a long start is told."""
    from pipelines.command.preflight import look
    from pipelines.command.progress import say, starting

    look(config)
    command = click.get_current_context().info_name or "unic-cache"
    for line in unshared_lines(command):
        say(line)
    with starting(command):
        yield config


NAMED = re.compile(r"[A-Za-z0-9._:@-]+")  # a teacher's name


def teacher_option(flag: str, metavar: str, text: str) -> Callable[[Any], Any]:
    """An option of '[NAME=]VALUE', repeatable, whose value is ((NAME, VALUE), ...)."""

    def pairs(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[Any, ...]:
        return tuple(named_value(one) for one in texts)

    return click.option(flag, multiple=True, callback=pairs, metavar=f"[NAME=]{metavar}", help=text)


LICENCE = teacher_option("--licence", "TEXT", "Licence of weights by file, to be recorded; repeatable.")
SOURCE = teacher_option("--source", "TEXT", "Where weights by file come from, to be recorded; repeatable.")
NORMALIZE = teacher_option(
    "--normalize", "MEAN/STD", "Of pixels in [0, 1], as r,g,b/r,g,b; repeatable. [default: the teacher's]"
)
POSITIONS = teacher_option(
    "--positions", "RULE", "How positions are resampled: timm, bicubic, bicubic-scale. [default: the teacher's]"
)
WEIGHTS = click.option("--weights", multiple=True, metavar="[NAME=]FILE", help="A teacher's weights; repeatable.")
RECIPE = click.option(
    "--recipe", type=click.Choice(RECIPES), help="How views are made. [default: the cache's, or unic]"
)
SIZE = click.option("--size", type=int, help="Pixels of a view. [default: the cache's, or 224]")
VIEW_SEED = click.option("--seed", type=int, help="Random seed for the views. [default: the cache's, or 0]")
TEACHER_BATCH = click.option("--batch-size", default=64, show_default=True, help="Images a teacher sees at once.")
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, ...")
TEACHER_DTYPE = click.option(
    "--dtype", default="float32", show_default=True, type=click.Choice(DTYPES), help="Teachers' arithmetic."
)
IMG_SIZE = click.option("--img-size", type=int, help="Pixels of the student's input. [default: the model's]")
PATCH_SIZE = click.option("--patch-size", type=int, help="Pixels of a patch. [default: the model's]")
WORKER_INDEX = click.option(
    "--worker-index",
    default=lambda: worker_from_environment()[0],
    show_default="of SLURM's array or torchrun, or 0",
    type=int,
    help="Which share of the work is this process's.",
)
NUM_WORKERS = click.option(
    "--num-workers",
    default=lambda: worker_from_environment()[1],
    show_default="of SLURM's array or torchrun, or 1",
    type=int,
    help="How many processes share the work.",
)


def named_file(text: str) -> tuple[str, str]:
    """'[NAME=]FILE' as (NAME, FILE); NAME is '' where it is not said. A path may hold '=' itself.

    click.UsageError where a file has the whole for its name, and another one what stands behind the '='.
    """
    name, separator, file = text.partition("=")
    if not separator or "/" in name:  # no teacher's name has a "/"
        return "", text
    if Path(text).exists():
        if file and Path(file).exists():
            raise click.UsageError(
                f"--weights {text}: {text} is a file, and so is {file}; say ./{text} or {name}=./{file}, which is meant"
            )
        return "", text
    return name, file


def named_value(text: str) -> tuple[str, str]:
    """'[NAME=]VALUE' as (NAME, VALUE); NAME is '', for every teacher, where it is not said."""
    name, separator, value = text.partition("=")
    return (name, value) if separator and NAMED.fullmatch(name) else ("", text)


class Widths(click.ParamType[tuple[int, int]]):
    """'H,LAST': two numbers."""

    name = "widths"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """The two numbers; a usage error where there are not two."""
        if isinstance(value, tuple):
            return value[0], value[1]
        parts = str(value).split(",")
        if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
            self.fail(f"{value!r} is not two numbers, as in 768,3072", param, ctx)
        return int(parts[0]), int(parts[1])
