"""Where a user says that files are: a path or a URL as it was meant, or an error that names the likely spelling.

A mistyped URL is a valid path: `s3:/bucket/cache` would be a folder on the machine's own disk, and a run would fill it
without a word. So what no one means as a path is refused here, before anything is opened. `./NAME` stands for a file
or folder that is really called so.
"""

import dataclasses
import os
import re
from typing import Any
from urllib.parse import unquote

import braceexpand

from unic_cache.errors import ConfigError

STORES = ("s3", "gs", "http", "https")
ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs"}
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
MISTYPED = re.compile(r"(s3a?|s3n|gs|gcs|https?|file)(?::[:;,./\\]*|[;,.]*[/\\]{2,})(.*)", re.IGNORECASE | re.DOTALL)
VARIABLE = re.compile(r"\$(?:\{\w+\}|[A-Za-z_]\w*)")

ANYWHERE = {"cache", "source", "target"}  # a folder: a path or a URL
TARS = {"shards", "val_shards", "train", "test"}  # a pattern of tars, likewise
HERE = {"out", "encoder", "init"}  # a local path; `init` may be a model's name instead
ONLY_HERE = "only a local path is taken here; copy files from or to a store with its own tools"
SHARD_ONLY_HERE = "`shard` packs local files into a local folder; copy that to the store afterwards"


def check_paths(config: Any) -> None:
    """ConfigError where a path of a stage's dataclass is not one that anybody means."""
    shard = getattr(config, "stage", "") == "shard"
    for field in dataclasses.fields(config):
        flag, value = field.name.replace("_", "-"), getattr(config, field.name)
        if value is None:
            continue
        if field.name in ANYWHERE and isinstance(value, str):
            check_path(str(value), flag)
        elif field.name in TARS:
            check_pattern(str(value), flag)
        elif field.name in HERE or (shard and field.name == "images"):
            check_here(str(value), flag, SHARD_ONLY_HERE if shard else ONLY_HERE)
        elif field.name == "weights":
            for _, file in value:
                check_here(str(file), flag)


def check_path(text: str, flag: str = "") -> str:
    """`text` if it is a path, or a URL of a store that is known, as it was meant. ConfigError otherwise."""
    _check_spelling(text, flag)
    url = SCHEME.fullmatch(text)
    if url is None:
        _check_local(text, flag)
        return text
    scheme, rest = url.groups()
    if scheme == "file":
        if not rest.startswith("/"):
            raise _refusal(text, flag, "a file URL is file:// and a whole path", f"./{rest}")
        if unquote(rest) != rest:
            raise _refusal(text, flag, "a path is taken as it is on the disk, without %", unquote(rest))
    elif scheme not in STORES:
        meant = ALIASES.get(scheme.lower(), scheme.lower())
        if meant in {*STORES, "file"}:
            raise _refusal(text, flag, "that is not how the URL begins", f"{meant}://{rest}")
        raise ConfigError(
            f"{_said(text, flag)}: no store for {scheme}:// is known; use a path, s3://, gs://, or https:// to read"
        )
    elif not rest.strip("/"):
        raise ConfigError(f"{_said(text, flag)}: a bucket or host is missing, as in {scheme}://NAME/prefix")
    elif rest.startswith("/"):
        raise _refusal(text, flag, "a bucket or host is missing", f"{scheme}://{rest.lstrip('/')}")
    return text


def check_here(text: str, flag: str = "", why: str = ONLY_HERE) -> str:
    """`text` if it is a path on this machine, as it was meant. ConfigError, ending with `why`, on any other URL."""
    check_path(text, flag)
    if SCHEME.fullmatch(text):
        raise ConfigError(f"{_said(text, flag)}: {why}")
    return text


def check_pattern(pattern: str, flag: str = "") -> str:
    """`pattern` if it, and each that '::' joins, is a path or a URL as it was meant. ConfigError otherwise."""
    check_path(pattern, flag)
    for part in pattern.split("::"):
        check_path(part, flag)
    return pattern


def braced(pattern: str) -> tuple[str, ...]:
    """What WebDataset's braces, and patterns joined by '::', stand for. ValueError where braces do not close."""
    return tuple(part for joined in pattern.split("::") for part in braceexpand.braceexpand(joined))


def _check_spelling(text: str, flag: str) -> None:
    """What makes neither a path nor a URL: nothing, blanks, quotes, another option, or what a shell did not expand."""
    if not text.strip():
        raise ConfigError(f"{_said(repr(text), flag)}: the path is empty; was a variable not set?")
    if text != text.strip() or re.search(r"[\x00-\x1f]", text):
        raise _refusal(repr(text), flag, "blanks around the path, or a line end in it", " ".join(text.split()))
    if text[0] in "'\"" and text[-1] == text[0]:
        raise _refusal(text, flag, "the quotes are part of the path", text[1:-1])
    if text.startswith("-"):
        raise ConfigError(f"{_said(text, flag)}: that is an option; a path is missing (or say ./{text})")
    if text.startswith("~"):
        raise _refusal(text, flag, f"'~' was not expanded (./{text} is a folder here)", os.path.expanduser(text))  # noqa: PTH111 (Path's raises)
    if VARIABLE.search(text) and not text.startswith("./") and not os.path.lexists(text):
        meant = os.path.expandvars(text)
        found = "" if VARIABLE.search(meant) else meant
        raise _refusal(text, flag, "a variable was not expanded; leave out single quotes", found)


def _check_local(text: str, flag: str) -> None:
    """ConfigError on a path whose first part is a mistyped scheme, a drive or a host."""
    mistyped = MISTYPED.fullmatch(text)
    if mistyped:
        scheme, rest = mistyped[1].lower(), mistyped[2].lstrip("/\\").replace("\\", "/")
        meant = f"/{rest}" if scheme == "file" else f"{ALIASES.get(scheme, scheme)}://{rest}"
        raise _refusal(text, flag, f"no URL, but a local path (say ./{text} for that)", meant)
    first = re.split(r"[/\\]", text)[0]
    if (first.endswith(":") and len(first) > 1) or re.fullmatch(r"[\w.-]+@[\w.-]+:.*", first):
        raise ConfigError(
            f"{_said(text, flag)}: neither a local path nor a URL that is known (say ./{text} for a local path)"
        )


def _said(text: str, flag: str) -> str:
    return f"{flag} {text}" if flag else text


def _refusal(text: str, flag: str, why: str, meant: str) -> ConfigError:
    return ConfigError(f"{_said(text, flag)}: {why}{f'; did you mean {meant}?' if meant else ''}")
