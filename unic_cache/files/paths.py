"""Checks of the paths and URLs that a user gives; an error names the likely spelling.

A mistyped URL is a valid path: `s3:/bucket/cache` would silently fill a folder on the local disk. So a path that
nobody means is refused here, before anything is opened. `./NAME` stands for a file or folder really called NAME.
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

# names of fields: `source` is (teacher, text) pairs in one config, and `images` is a number in another
ANYWHERE = {"cache", "source", "target"}  # a folder: a path or a URL
TARS = {"shards", "val_shards", "knn_shards", "train", "test"}  # a pattern of tars: paths or URLs
READ = {"images", "masks", "depths", "lists", "encoder", "init", "from_run", "inputs", "run", "results"}  # local
WRITTEN = {"out", "features"}  # local
RUN = ("distill", "out")  # stage and field: a folder, or a store that files can be written to
NAMES = {"encoder", "init"}  # of these: may be a model's name instead, also that of a folder
FOLDER = "local-dir:"  # before the path, in such a name
ONLY_HERE = "only a local path is accepted here"
WRITTEN_HERE = f"{ONLY_HERE}; copy the files to the store afterwards"
FILES = (".safetensors", ".json", ".pt", ".pth", ".bin", ".csv", ".txt", ".npz")  # else a URL is taken for a folder's
COPIES = {  # scheme -> how a file and a folder are copied to here
    "s3": ("aws s3 cp {url} {name}", "aws s3 cp --recursive {url} {name}"),
    "gs": ("gcloud storage cp {url} {name}", "gcloud storage cp --recursive {url} ."),
    "http": ("curl -o {name} {url}", ""),
    "https": ("curl -o {name} {url}", ""),
}
SHARD_ONLY_HERE = "`shard` packs local files into a local folder; copy that to the store afterwards"


def check_paths(config: Any) -> None:
    """ConfigError if a config has a path that nobody means."""
    for field in dataclasses.fields(config):
        about, value = field.metadata.get("about"), getattr(config, field.name)
        flag = (about.flag if about else "") or field.name.replace("_", "-")
        if field.name == "weights":
            for _, file in value:
                check_here(file, flag)
            continue
        for text in value if isinstance(value, tuple) else (value,):
            if not isinstance(text, str):
                continue
            if field.name in ANYWHERE:
                check_path(text, flag)
            elif field.name in TARS:
                check_pattern(text, flag)
            elif (config.stage, field.name) == RUN:
                check_store(text, flag)
            elif field.name in READ | WRITTEN:
                path = text.removeprefix(FOLDER) if field.name in NAMES else text
                why = WRITTEN_HERE if field.name in WRITTEN else ""
                check_here(path, flag, SHARD_ONLY_HERE if config.stage == "shard" else why)


def check_path(text: str, flag: str = "") -> str:
    """`text` if it is a path, or a URL of a known store, as it was meant. ConfigError otherwise."""
    _check_spelling(text, flag)
    url = SCHEME.fullmatch(text)
    if url is None:
        _check_local(text, flag)
        return text
    scheme, rest = url.groups()
    if scheme == "file":
        if not rest.startswith("/"):
            raise _refusal(text, flag, "a file URL is file:// and an absolute path", f"./{rest}")
        if unquote(rest) != rest:
            raise _refusal(text, flag, "paths are used as they are on disk, without % escapes", unquote(rest))
    elif scheme not in STORES:
        meant = ALIASES.get(scheme.lower(), scheme.lower())
        if meant in {*STORES, "file"}:
            raise _refusal(text, flag, "the URL begins differently", f"{meant}://{rest}")
        raise ConfigError(
            f"{_said(text, flag)}: {scheme}:// is not supported; use a path, s3://, gs://, or https:// to read"
        )
    elif not rest.strip("/"):
        raise ConfigError(f"{_said(text, flag)}: a bucket or host is missing, as in {scheme}://NAME/prefix")
    elif rest.startswith("/"):
        raise _refusal(text, flag, "a bucket or host is missing", f"{scheme}://{rest.lstrip('/')}")
    return text


def check_here(text: str, flag: str = "", why: str = "") -> str:
    """`text` if it is a path on this machine, as it was meant. ConfigError if it is a URL.

    The error ends with `why`; by default, with how to copy what is there.
    """
    check_path(text, flag)
    if SCHEME.fullmatch(text):
        raise ConfigError(f"{_said(text, flag)}: {why or f'{ONLY_HERE}; {_copying(text)}'}")
    return text


def check_store(text: str, flag: str = "") -> str:
    """`text` if it is a path, or a URL to which files can be written, as it was meant. ConfigError otherwise."""
    if check_path(text, flag).startswith(("http://", "https://")):
        raise ConfigError(f"{_said(text, flag)}: web servers are read only; use a path, s3:// or gs://")
    return text


def check_pattern(pattern: str, flag: str = "") -> str:
    """`pattern` if it, and each part between '::', is a path or a URL as it was meant. ConfigError otherwise."""
    check_path(pattern, flag)
    for part in pattern.split("::"):
        check_path(part, flag)
    return pattern


def braced(pattern: str) -> tuple[str, ...]:
    """All paths of a pattern with WebDataset's braces and '::'. ValueError if braces do not close."""
    return tuple(part for joined in pattern.split("::") for part in braceexpand.braceexpand(joined))


def _check_spelling(text: str, flag: str) -> None:
    """ConfigError on what is neither path nor URL: empty, padded, quoted, an option, or not expanded by the shell."""
    if not text.strip():
        raise ConfigError(f"{_said(repr(text), flag)}: the path is empty; was a variable not set?")
    if text != text.strip() or re.search(r"[\x00-\x1f]", text):
        raise _refusal(repr(text), flag, "spaces around the path, or a line break in it", " ".join(text.split()))
    if text[0] in "'\"" and text[-1] == text[0]:
        raise _refusal(text, flag, "the quotes are part of the path", text[1:-1])
    if text.startswith("-"):
        raise ConfigError(f"{_said(text, flag)}: this is an option; a path is missing (or write ./{text})")
    if text.startswith("~"):
        raise _refusal(text, flag, f"'~' was not expanded (./{text} is a folder here)", os.path.expanduser(text))  # noqa: PTH111 (Path's raises)
    if VARIABLE.search(text) and not text.startswith("./") and not os.path.lexists(text):
        meant = os.path.expandvars(text)
        found = "" if VARIABLE.search(meant) else meant
        raise _refusal(text, flag, "a variable was not expanded; leave out single quotes", found)


def _check_local(text: str, flag: str) -> None:
    """ConfigError if the first part of a path is a mistyped scheme, a drive or a host."""
    mistyped = MISTYPED.fullmatch(text)
    if mistyped:
        scheme, rest = mistyped[1].lower(), mistyped[2].lstrip("/\\").replace("\\", "/")
        meant = f"/{rest}" if scheme == "file" else f"{ALIASES.get(scheme, scheme)}://{rest}"
        raise _refusal(text, flag, f"not a URL but a local path (write ./{text} if you mean it)", meant)
    first = re.split(r"[/\\]", text)[0]
    if (first.endswith(":") and len(first) > 1) or re.fullmatch(r"[\w.-]+@[\w.-]+:.*", first):
        raise ConfigError(
            f"{_said(text, flag)}: neither a local path nor a supported URL (write ./{text} for a local path)"
        )


def _copying(url: str) -> str:
    """How to have here what is at a URL."""
    scheme, _, rest = url.rstrip("/").partition("://")
    name = rest.rpartition("/")[2]
    file, folder = COPIES.get(scheme, ("", ""))
    command = (file if name.endswith(FILES) else folder).format(url=url.rstrip("/"), name=name)
    if scheme == "file":
        return f"leave out {scheme}://"
    return f"copy it first: `{command}`, then give {name}" if command else "copy it first"


def _said(text: str, flag: str) -> str:
    return f"{flag} {text}" if flag else text


def _refusal(text: str, flag: str, why: str, meant: str) -> ConfigError:
    return ConfigError(f"{_said(text, flag)}: {why}{f'; did you mean {meant}?' if meant else ''}")
