"""A stage as a command: its config is made from flags and checked, then its work is done."""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from pipelines.command.failures import clear_errors
from pipelines.command.flags import parameters
from pipelines.command.shares import check_flags, unshared_lines
from unic_cache.errors import ConfigError


class Examples(click.Command):
    """A command whose help ends with examples."""

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, one per line."""
        del ctx
        with formatter.section("Examples"):
            for line in self.examples.strip().splitlines():
                formatter.write(f"  {line.strip()}\n")


def stage(
    group: click.Group, config: type, examples: str, without: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], click.Command]:
    """Make `body(config, **other flags)` a command of the group, with the config's fields, but `without`, as flags.

    Names and paths are checked before the body runs, without torch. Errors become one line and an exit code.
    """
    fields = {field.name for field in dataclasses.fields(config)}

    def decorate(body: Callable[..., None]) -> click.Command:
        @functools.wraps(body)
        def run(**flags: Any) -> None:
            from pipelines.command import preflight
            from pipelines.command.progress import say, starting

            check_worker_flags()
            others = {name: flags.pop(name) for name in flags.keys() - fields}
            with clear_errors():
                made = config(**flags)
                preflight.look(made)
                for line in unshared_lines(body.__name__):
                    say(line)
                with starting(body.__name__):
                    body(made, **others)

        for parameter in reversed([*parameters(config, without)]):
            parameter(run)
        return group.command(cls=Examples, examples=examples)(run)

    return decorate


def check_worker_flags() -> None:
    """UsageError if only one of --worker-index and --num-workers is given, or if they contradict the environment."""
    source = click.get_current_context().get_parameter_source
    names = ("worker_index", "num_workers")
    given = [name for name in names if source(name) is ParameterSource.COMMANDLINE]
    if len(given) == 1:
        raise click.UsageError("--worker-index and --num-workers belong together; give both, or neither")
    if given:
        flags = click.get_current_context().params
        try:
            check_flags(*(flags[name] for name in names))
        except ConfigError as error:
            raise click.UsageError(str(error)) from error


def on_terminal() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin.isatty() and sys.stdout.isatty()
