"""An offline cache of teacher features and the distiller that trains a student from it.

| name | what it is |
|---|---|
| `FeatureDataset` | batches of images and features for a training loop of your own |
| `open_cache` | a `Cache`: teachers, views, and any row or sample as features |
| `load_heads` | a `Heads`, made by `export --format heads`: a student that guesses each teacher's features |
| `extract`, `distill`, `evaluate` | the commands as functions; their arguments are the flags, with `_` for `-` |
| `UnicCacheError` | the parent of all errors that a user can fix; a ValueError |

docs/PYTHON.md has examples. Importing this needs no torch: a name is loaded when it is first used.
"""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from unic_cache.config import DistillConfig, EvaluateConfig, ExtractConfig
from unic_cache.config.keywords import from_keywords, signature_of
from unic_cache.errors import UnicCacheError

if TYPE_CHECKING:
    from pipelines.evaluating.comparison import Result
    from pipelines.extracting.filling import Summary
    from pipelines.training.outcome import Trained
    from unic_cache.cache import Cache, CachedTeacher, open_cache
    from unic_cache.stream.dataset import FeatureDataset
    from unic_cache.student.heads import Heads, load_heads

__all__ = [
    "Cache",
    "CachedTeacher",
    "FeatureDataset",
    "Heads",
    "UnicCacheError",
    "distill",
    "evaluate",
    "extract",
    "load_heads",
    "open_cache",
]

_HOMES = {
    "Cache": "unic_cache.cache",
    "CachedTeacher": "unic_cache.cache",
    "FeatureDataset": "unic_cache.stream.dataset",
    "Heads": "unic_cache.student.heads",
    "load_heads": "unic_cache.student.heads",
    "open_cache": "unic_cache.cache",
}
import_module("unic_cache.evaluate")  # before the function of that name, which a later import would replace

_P = ParamSpec("_P")
_Config = TypeVar("_Config")
_Found = TypeVar("_Found")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__


def _with_settings_of(
    config: Callable[_P, _Config],
) -> Callable[[Callable[[_Config], _Found]], Callable[_P, _Found]]:
    """Give a function of a config the config's fields as its keywords."""

    def decorate(body: Callable[[_Config], _Found]) -> Callable[_P, _Found]:
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _Found:
            return body(from_keywords(config, args, kwargs))

        return signature_of(config, body, run)

    return decorate


@_with_settings_of(ExtractConfig)
def extract(config: ExtractConfig) -> "Summary":
    """Run every teacher once on every view of every image and store the features; again to resume or extend.

    Gives counts: `images`, `units`, `bytes`, `skipped` units that were there already, and `bad` images with reasons.
    """
    from pipelines import extract as stage

    return stage.run(config)


@_with_settings_of(DistillConfig)
def distill(config: DistillConfig) -> "Trained":
    """Train a student from the cache and export its encoder for timm.

    Gives `encoder`, the file; `timm_line`, which loads it; `steps`, `loss`, `licences` of the teachers, and counts of
    images that were `left_out` or `broken`.
    """
    from pipelines import distill as stage

    return stage.run(config)


@_with_settings_of(EvaluateConfig)
def evaluate(config: EvaluateConfig) -> "Result":
    """Compare encoders on every task that the labels allow: students, cached teachers, timm models.

    Gives the tables' numbers with intervals: `tasks` by name, and `to_json()` for what the command's --json prints.
    """
    from pipelines import evaluate as stage

    return stage.run(config)
