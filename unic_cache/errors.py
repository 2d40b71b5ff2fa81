"""What can go wrong through no fault of ours. Each message says what, where and what to do about it."""


class UnicCacheError(ValueError):
    """Base of every error that a user can cause and mend; `cli.py` prints it without a traceback."""


class ConfigError(UnicCacheError):
    """A setting, or two settings together, make no sense."""


class ShardError(UnicCacheError):
    """A WebDataset shard is missing, truncated, repeated or not the one that the index describes."""


class EmptyShardError(ShardError):
    """A tar without one image, at `path`, of `members` files: left out while others have some."""

    def __init__(self, message: str, path: str = "", members: int = 0) -> None:
        super().__init__(message)
        self.path = path
        self.members = members


class ImageError(UnicCacheError):
    """One image cannot be decoded within bounds. Extraction skips it unless it is asked to be strict."""


class TeacherError(UnicCacheError):
    """A teacher is unknown, its weights cannot be had or do not fit, or it answers with NaN."""


class CacheError(UnicCacheError):
    """A cache lacks what is asked of it, contradicts what is asked of it, or is broken."""


class BrokenError(CacheError):
    """Rows that were committed are missing or are not what was committed: what `--skip-broken` goes on without."""


class WeightsError(UnicCacheError):
    """A file of weights is missing, of another kind, damaged, or its tensors are not those that are asked for."""
