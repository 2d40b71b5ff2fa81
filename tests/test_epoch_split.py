"""How an epoch is divided over batches and ranks, for every small case."""

import pytest

from unic_cache.errors import ConfigError
from unic_cache.stream.epoch_split import EpochSplit

CASES = [(n, b, r) for n in range(1, 40) for b in range(1, 6) for r in range(1, 6)]


def parts(images: int, batch_size: int, world: int, drop_last: bool) -> list[list[range]]:
    """The batches of each step, rank after rank; [] if the split is refused."""
    try:
        split = EpochSplit(images, batch_size, world, drop_last)
    except ConfigError:
        return []
    return [[split.part(step, rank) for rank in range(world)] for step in range(split.steps)]


@pytest.mark.parametrize("drop_last", [False, True])
def test_every_image_is_in_one_batch_and_all_ranks_make_as_many(drop_last):
    accepted = 0
    for images, batch_size, world in CASES:
        steps = parts(images, batch_size, world, drop_last)
        if not steps:
            continue
        accepted += 1
        places = [place for step in steps for part in step for place in part]
        whole = images - images % (batch_size * world) if drop_last else images
        assert places == list(range(whole))
        assert all(1 <= len(part) <= batch_size for step in steps for part in step)
        uneven = [step for step in steps if any(len(part) < batch_size for part in step)]
        assert len(uneven) <= 2 * (not drop_last)
        assert uneven in ([], steps[-len(uneven) :])
        sizes = [len(part) for step in uneven for part in step]
        assert not sizes or max(sizes) - min(sizes) <= 1
    assert accepted > len(CASES) / 2


def test_only_what_cannot_be_divided_is_refused():
    for images, batch_size, world in CASES:
        impossible = images < world or (batch_size == 1 and images % world)
        assert (not parts(images, batch_size, world, False)) == bool(impossible)
        assert (not parts(images, batch_size, world, True)) == (images < batch_size * world)


def test_a_refusal_says_what_to_change():
    with pytest.raises(
        ConfigError, match="2 images are too few for batches of 8 on 3 ranks: a rank would get an empty"
    ):
        EpochSplit(2, 8, 3)
    with pytest.raises(ConfigError, match="7 images are too few for batches of 8 on 1 ranks with drop_last; lower"):
        EpochSplit(7, 8, drop_last=True)


def test_what_a_step_shows_does_not_depend_on_the_ranks():
    one, four = parts(100, 16, 1, False), parts(100, 4, 4, False)
    assert [[*step[0]] for step in one] == [[place for part in step for place in part] for step in four]
