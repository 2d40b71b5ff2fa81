"""Errors that users can cause and fix. Each message says what is wrong, where, and what to do."""


class UnicCacheError(ValueError):
    """Base class; `cli.py` prints these without a traceback."""


class ConfigError(UnicCacheError):
    """A setting is invalid, or two settings conflict."""


class ShardError(UnicCacheError):
    """A WebDataset shard is missing, truncated, repeated or does not match its index."""


class EmptyShardError(ShardError):
    """A tar has no image; it is left out if others have some. `members` counts its files."""

    def __init__(self, message: str, path: str = "", members: int = 0) -> None:
        super().__init__(message)
        self.path = path
        self.members = members


class ImageError(UnicCacheError):
    """An image cannot be decoded within bounds. Extraction skips it unless --strict."""


class TeacherError(UnicCacheError):
    """A teacher is unknown, its weights are unavailable or do not fit, or it outputs NaN."""


class CacheError(UnicCacheError):
    """A cache lacks or contradicts what was requested, or is broken."""


class BrokenError(CacheError):
    """Committed rows are missing or changed; `--skip-broken` continues without them."""


class WeightsError(UnicCacheError):
    """A weights file is missing, damaged or of another kind, or its tensors do not match the network."""
