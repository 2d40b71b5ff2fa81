"""What commands share: their flags, clear errors and exit codes, and what the environment says of workers."""

import contextlib
import os
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import click

from unic_cache.config import DTYPES, RECIPES
from unic_cache.errors import ConfigError, UnicCacheError

STOPPED = 130

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


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """What a user can mend becomes one line and exit code 1 (2 for settings); a signal becomes exit code 130."""
    try:
        yield
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    except UnicCacheError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(
            f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}. All that was committed is "
            "kept; mend this and run the same command again"
        ) from error
    except KeyboardInterrupt as error:
        note = f": {error}" if str(error) else "; run the same command again to go on"
        click.echo(f"stopped{note}", err=True)
        sys.exit(STOPPED)


def interrupt(_number: int, _frame: FrameType | None) -> None:
    """SIGTERM is answered like Ctrl-C."""
    raise KeyboardInterrupt


def on_terminal() -> bool:
    """Whether there is a person to be asked."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def worker_from_environment() -> tuple[int, int]:
    """(index, number of workers) of a SLURM array's task or of a torchrun process; (0, 1) elsewhere."""

    def number(name: str, default: str) -> int:
        text = os.environ.get(name, default)
        if not text.isdecimal():
            raise click.UsageError(
                f"{name} is {text!r} in the environment, not a number; say --worker-index, --num-workers"
            )
        return int(text)

    if "SLURM_ARRAY_TASK_ID" in os.environ:
        place = number("SLURM_ARRAY_TASK_ID", "0") - number("SLURM_ARRAY_TASK_MIN", "0")
        index, rest = divmod(place, max(number("SLURM_ARRAY_TASK_STEP", "1"), 1))
        count = number("SLURM_ARRAY_TASK_COUNT", "1")
        if rest or not 0 <= index < count:
            raise click.UsageError(
                "the array's task numbers are not evenly spaced; say --worker-index and --num-workers"
            )
        return index, count
    return number("RANK", "0"), number("WORLD_SIZE", "1")


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
    """'[NAME=]FILE' as (NAME, FILE); NAME is '' where it is not said."""
    name, separator, file = text.partition("=")
    return (name, file) if separator else ("", text)
