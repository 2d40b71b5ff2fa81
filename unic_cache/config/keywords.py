"""A config from Python's keywords: lists and paths are taken as they are meant, and other types are refused by name."""

import dataclasses
import difflib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from unic_cache.errors import ConfigError

Config = TypeVar("Config")
Run = TypeVar("Run", bound=Callable[..., Any])


def from_keywords(config: Callable[..., Config], args: Sequence[object], given: Mapping[str, object]) -> Config:
    """The config of these settings. ConfigError for an unknown name, a wrong type, or settings without a name.

    Lists stand for tuples, dictionaries for pairs, one text for a tuple of it, and paths for their text.
    """
    hints = get_type_hints(config)
    fields = {field.name: field for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    command = config.stage  # type: ignore[attr-defined]
    if args:
        raise ConfigError(f"{command}: give settings by name, as in {next(iter(fields))}=...")
    for name in given:
        if name not in fields:
            close = difflib.get_close_matches(name, fields, 1)
            hint = f"did you mean {close[0]}?" if close else f"help(unic_cache.{command}) lists all"
            raise ConfigError(f"{command} has no setting {name!r}; {hint}")
    for name, field in fields.items():
        if name not in given and field.default is dataclasses.MISSING:
            raise ConfigError(f"{command} needs {name}")
    return config(**{name: _checked(name, value, hints[name]) for name, value in given.items()})


def signature_of(config: Callable[..., object], body: Callable[..., object], run: Run) -> Run:
    """`run` with the name and text of `body`, and a config's fields as its signature and in its help."""
    fields = dataclasses.fields(config)  # type: ignore[arg-type]
    lines = ["", "Settings:", ""]
    for field in fields:
        about = field.metadata.get("about")
        if about and about.help:
            one_of = f" One of {', '.join(about.choices)}." if about.choices else ""
            unset = f" Default: {about.unset}." if about.unset else ""
            lines.append(f"- `{field.name}`: {about.help.replace('; repeatable.', ', or several.')}{one_of}{unset}")
    keywords = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(config).parameters.values()
    ]
    returns = inspect.signature(body).return_annotation
    run.__name__, run.__qualname__, run.__module__ = body.__name__, body.__qualname__, body.__module__
    run.__doc__ = inspect.cleandoc(body.__doc__ or "") + "\n" + "\n".join(lines)
    run.__signature__ = inspect.Signature(keywords, return_annotation=returns)  # type: ignore[attr-defined]
    return run


def _checked(name: str, value: object, hint: Any) -> object:
    try:
        return _meant(value, hint)
    except TypeError:
        text = str(hint) if get_args(hint) else hint.__name__
        pairs = "; give a dictionary {NAME: TEXT}" if "tuple[tuple" in text else ""
        raise ConfigError(f"{name} {value!r:.80} is not of type {text}{pairs}") from None


def _meant(value: object, hint: Any) -> object:
    """The value as the field's type. TypeError if it is of another."""
    options = get_args(hint) if get_origin(hint) is not tuple and get_args(hint) else (hint,)
    plain = tuple(option for option in options if get_origin(option) is not tuple)
    several = next((get_args(option) for option in options if option not in plain), None)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if several is not None and value is not None:
        parts = [*value.items()] if isinstance(value, Mapping) else [value] if isinstance(value, str) else value
        if not isinstance(parts, Sequence):
            raise TypeError
        kinds = [several[0]] * len(parts) if several[-1] is Ellipsis else list(several)
        if len(kinds) != len(parts):
            raise TypeError
        return tuple(_meant(part, kind) for part, kind in zip(parts, kinds, strict=True))
    if float in plain and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
        raise TypeError
    return value
