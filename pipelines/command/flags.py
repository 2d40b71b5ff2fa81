"""A config's fields as click parameters, so that a flag and its field cannot differ."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import click

from pipelines.command.shares import environment_share
from unic_cache.config.options import About
from unic_cache.errors import ConfigError

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
RULE = r"(?:cls[a-z0-9-]*|patch)=[a-z0-9:-]+"
NAME = r"(?:(?:hf-hub|local-dir|open_clip|py):[A-Za-z0-9._:@/#-]+|[A-Za-z0-9._:@-]+)"
NAMED = re.compile(rf"({NAME}(?:\+{RULE}(?:,{RULE})*)?)=(.*)", re.DOTALL)  # a teacher's name, its value


def parameters(config: type, without: tuple[str, ...] = ()) -> Iterator[Decorator]:
    """A click decorator for each field of a config, in order: a flag for help, an argument for what is required."""
    for field in dataclasses.fields(config):
        about = field.metadata.get("about", About())
        if about.help and field.name not in without:
            yield flag(field, about)
        elif field.default is dataclasses.MISSING:
            several = field.type == tuple[str, ...]
            yield click.argument(field.name, metavar=about.metavar, nargs=-1 if several else 1, required=True)


def flag(field: dataclasses.Field[Any], about: About) -> Decorator:
    """The click option of a field, by its type and its description."""
    kind: Any = get_args(field.type)[0] if isinstance(field.type, UnionType) else field.type
    settings = dict(TYPES.get(kind, {"type": kind}))
    if about.choices:
        settings["type"] = click.Choice(about.choices)
    if about.once:
        settings = {"multiple": True, "callback": only_one}
    if field.default is dataclasses.MISSING:
        settings["required"] = not settings.get("multiple")
    elif not settings.get("multiple"):
        settings["default"] = FROM_ENVIRONMENT.get(field.name, field.default)
    name = about.flag or field.name.replace("_", "-")
    shown = field.default is not False and field.default not in (None, "", ())
    return click.option(
        f"--{name}/--no-{name}" if kind is bool and field.default is not False else f"--{name}",
        *([f"--{about.formerly}"] if about.formerly else []),
        field.name,
        metavar=about.metavar,
        help=f"{about.help} [default: {about.unset}]" if about.unset else about.help,
        show_default=shown and not about.unset,
        **settings,
    )


def only_one(_context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str | None:
    """The value of an option given at most once, which would otherwise silently take its last."""
    if len(values) > 1:
        raise click.BadParameter("give it once; braces join patterns, as in '{a,b}/*.tar'", param=parameter)
    return values[0] if values else None


def worker_from_environment() -> tuple[int, int]:
    """(index, number of workers) of a SLURM array's task or of a torchrun process; (0, 1) elsewhere."""
    try:
        share = environment_share()
    except ConfigError as error:
        raise click.UsageError(str(error)) from error
    return share.index, share.count


def pairs(_context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Each '[NAME=]VALUE' as (NAME, VALUE)."""
    return tuple(map(named_file if parameter.name == "weights" else named_value, texts))


def named_file(text: str) -> tuple[str, str]:
    """'[NAME=]FILE' as (NAME, FILE), NAME being '' if not given; a path may contain '='.

    click.UsageError if both `text` as a whole and the part behind '=' are files.
    """
    named = NAMED.fullmatch(text)
    if named is None:
        return "", text
    name, file = named.groups()
    if Path(text).exists():
        if file and Path(file).exists():
            raise click.UsageError(
                f"--weights {text}: both {text} and {file} are files; write ./{text} or {name}=./{file}"
            )
        return "", text
    return name, file


def named_value(text: str) -> tuple[str, str]:
    """'[NAME=]VALUE' as (NAME, VALUE), NAME being '', for every teacher, if not given."""
    named = NAMED.fullmatch(text)
    return ("", text) if named is None else (named[1], named[2])


def widths(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    """'H,LAST' as two numbers."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise click.BadParameter(f"{text!r} is not two numbers, as in 768,3072")
    return tuple(map(int, parts))


def shares(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """'LEAST,MOST' as two numbers."""
    if text is None:
        return None
    try:
        least, most = map(float, text.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not two numbers, as in 0.4,1") from error
    return least, most


TYPES: dict[Any, dict[str, Any]] = {
    bool: {"is_flag": True},
    tuple[int, int]: {"type": str, "callback": widths},
    tuple[float, float]: {"type": str, "callback": shares},
    tuple[str, ...]: {"multiple": True},
    tuple[tuple[str, str], ...]: {"multiple": True, "callback": pairs},
}
FROM_ENVIRONMENT: dict[str, Callable[[], int]] = {
    "worker_index": lambda: worker_from_environment()[0],
    "num_workers": lambda: worker_from_environment()[1],
}
