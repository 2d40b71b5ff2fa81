"""An offline cache of teacher features and the distiller that trains a student from it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unic_cache.cache import Cache, open_cache

__all__ = ["Cache", "open_cache"]


def __getattr__(name: str) -> Any:
    """The public reader, imported when it is asked for: `unic-cache --help` needs no torch."""
    if name in __all__:
        from unic_cache import cache

        return getattr(cache, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
