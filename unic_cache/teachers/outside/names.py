"""Names of teachers outside timm, and what can be said of them before a library is imported.

| name | what it is |
|---|---|
| `hf-hub:ORG/NAME`, `hf-hub:ORG/NAME#REVISION` | a model on the hub, in the layout of timm, transformers or open_clip |
| `local-dir:PATH` | the same in a folder |
| `open_clip:ARCH/TAG` | the image tower of a model of open_clip |
| `py:package.module:factory` | a module of your own, see `own_module.py` |

A size and rules come behind, as for every teacher: `hf-hub:ORG/NAME#REVISION@SIZE+cls=none`.
"""

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unic_cache.errors import TeacherError

HUB, FOLDER, OPEN_CLIP, PY = "hf-hub", "local-dir", "open_clip", "py"
CONFIGS = ("config.json", "open_clip_config.json")  # of timm and transformers, of open_clip; the first counts
FORMS = {
    HUB: (
        r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(#[\w.-]+(/[\w.-]+)*)?",
        "hf-hub:ORG/NAME or hf-hub:ORG/NAME#REVISION",
    ),
    FOLDER: (
        r"[\w./-]+",
        "local-dir:PATH, of letters, digits, '.', '_', '-' and '/' (make a link to any other folder)",
    ),
    OPEN_CLIP: (r"[\w.-]+/[\w.-]+", "open_clip:ARCH/TAG, as in open_clip:ViT-B-32/laion2b_s34b_b79k"),
    PY: (r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", "py:package.module:factory"),
}
EXTRAS = {"transformers": "hub", "open_clip": "open-clip"}  # package -> the extra of this project that installs it


@dataclass(frozen=True)
class Outside:
    """A name, without size and rules, in its parts."""

    name: str  # the whole, as in hf-hub:ORG/NAME#REVISION
    scheme: str
    place: str  # ORG/NAME, PATH, ARCH/TAG, or package.module:factory
    revision: str | None = None


def is_outside(name: str) -> bool:
    """Whether a teacher's name is of one of these forms, right or wrong."""
    return name.partition(":")[0] in FORMS and ":" in name


def parsed(name: str) -> Outside:
    """The parts of a name without size and rules. TeacherError if its form is wrong."""
    scheme, _, rest = name.partition(":")
    pattern, form = FORMS[scheme]
    if not re.fullmatch(pattern, rest, re.ASCII):
        raise TeacherError(f"teacher {name!r} must be {form}")
    place, _, revision = rest.partition("#")
    return Outside(name, scheme, place, revision or None)


def check(name: str) -> None:
    """TeacherError if a name cannot work, as far as this is known without importing anything."""
    outside = parsed(name)
    if outside.scheme in CHECKS:
        CHECKS[outside.scheme](outside)


def check_installed(package: str, name: str) -> None:
    """TeacherError if the package of an extra is not installed."""
    if importlib.util.find_spec(package) is None:
        raise TeacherError(
            f"teacher {name}: it needs {package}, which is not installed: pip install 'unic-cache[{EXTRAS[package]}]'"
        )


def imported(package: str, name: str) -> Any:
    """The package of an extra. TeacherError if it is not installed, or its import fails."""
    check_installed(package, name)
    try:
        return importlib.import_module(package)
    except (ImportError, OSError, RuntimeError) as error:  # one of its own needs is missing, or of another release
        raise TeacherError(f"teacher {name}: {package} cannot be imported: {type(error).__name__}: {error}") from error


def check_folder(outside: Outside) -> None:
    """TeacherError unless the folder of a local-dir: name holds a model's description."""
    folder = Path(outside.place)
    if not folder.is_dir():
        raise TeacherError(f"teacher {outside.name}: there is no folder {folder}")
    if not any((folder / config).is_file() for config in CONFIGS):
        raise TeacherError(
            f"teacher {outside.name}: neither {' nor '.join(CONFIGS)} in {folder}; give a folder that timm, "
            "transformers or open_clip saved"
        )


def check_module(outside: Outside) -> None:
    """TeacherError if the outermost package of a py: name is not found."""
    package = outside.place.partition(":")[0].partition(".")[0]
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise TeacherError(
            f"teacher {outside.name}: Python finds no module {package!r}; install its package, or set PYTHONPATH to "
            "the folder that holds it"
        )


CHECKS: dict[str, Callable[[Outside], None]] = {
    FOLDER: check_folder,
    OPEN_CLIP: lambda outside: check_installed("open_clip", outside.name),
    PY: check_module,
}
