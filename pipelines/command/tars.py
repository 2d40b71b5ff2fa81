"""The tars that a stage is given, and what of them is left out."""

from collections.abc import Sequence

from pipelines.command.preflight import DEFAULT_SHARDS
from pipelines.command.progress import say
from unic_cache.errors import EmptyShardError, ShardError
from unic_cache.views.index import ShardEntry
from unic_cache.views.left_out import NO_IMAGE, UNREAD_LABEL, listed, shown
from unic_cache.views.shards import describe_filled, expand


def given_shards(
    pattern: str | None, views_are_kept: bool, strict: bool = False, flag: str = ""
) -> tuple[Sequence[str], Sequence[ShardEntry]]:
    """(paths, index entries) of the pattern's tars, by default shards/*.tar, or none if the cache keeps the views.

    A line on stderr says what is left out of them, and which tars are empty. EmptyShardError if all are; ShardError if
    no tar is found, beginning with `flag`, or, if `strict`, a sample has no image.
    """
    try:
        paths = expand(DEFAULT_SHARDS if pattern is None else pattern)
    except ShardError as error:
        if pattern is None and views_are_kept:
            return (), ()
        raise ShardError(f"{flag}: {error}") if flag else error  # noqa: B904 (the same error, with its flag)
    found, empty = describe_filled(paths)
    left_out = [(path, one) for path, entry in found for one in entry.left_out if one.reason != UNREAD_LABEL]
    if strict:
        for path, one in left_out:
            if one.reason == NO_IMAGE:
                raise ShardError(f"{path}: {listed([one])}; repair the tar, or leave --strict out")
    if left_out:
        tars = len({path for path, _ in left_out})
        say(f"left out of {tars} tar{'s' * (tars > 1)}: {listed(one for _, one in left_out)}")
    if found and empty:
        say(f"left out, as they hold no image: {', '.join(shown(error.path) for error in empty)}")
    if not found:
        raise _all_empty(empty)
    return tuple(path for path, _ in found), tuple(entry for _, entry in found)


def _all_empty(errors: Sequence[EmptyShardError]) -> ShardError:
    """The error for a set without images: EmptyShardError only if no tar has any member."""
    for error in errors:
        if error.members:
            return (
                ShardError(f"{error}; give tars with images")
                if len(errors) == 1
                else ShardError(f"none of {len(errors)} tars holds an image; the first: {error}")
            )
    names = ", ".join(shown(error.path) for error in errors)
    plural = f"all {len(errors)} tars are" if len(errors) > 1 else "the tar is"
    return EmptyShardError(f"{plural} empty: {names}", names)
