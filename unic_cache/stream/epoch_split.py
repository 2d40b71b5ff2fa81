"""An epoch divided into batches and ranks: each image in one batch, and equally many batches for every rank.

Step k is the next B R images of the epoch's order, and rank r takes the r-th of R equal parts: what is seen in a step
depends on B R alone. Fewer than B R images may be left at the end: they make one more, smaller step, divided as evenly
as possible. If they are fewer than the ranks, they are divided together with the step before.

Letters: N images of an epoch, B images of a rank's batch, R ranks.
"""

from dataclasses import dataclass

from unic_cache.errors import ConfigError


@dataclass(frozen=True)
class EpochSplit:
    """N images over R ranks in batches of B; with `drop_last` the images after the last whole step are left out.

    ConfigError if a rank would get an empty batch, or none at all.
    """

    images: int
    batch_size: int
    world: int = 1
    drop_last: bool = False

    def __post_init__(self) -> None:
        said = f"{self.images:,} images are too few for batches of {self.batch_size} on {self.world} ranks"
        if not self.steps:
            raise ConfigError(f"{said} with drop_last; lower batch_size, or leave drop_last out")
        if self._rest < self._uneven * self.world:
            raise ConfigError(f"{said}: a rank would get an empty batch; lower world, or choose another batch_size")

    @property
    def steps(self) -> int:
        """Batches of each rank in an epoch."""
        whole, rest = divmod(self.images, self.batch_size * self.world)
        return whole + (rest > 0 and not self.drop_last)

    def part(self, step: int, rank: int) -> range:
        """The places in the epoch's order that a rank's batch takes."""
        even = self.steps - self._uneven
        if step < even:
            first = (step * self.world + rank) * self.batch_size
            return range(first, first + self.batch_size)
        start, parts = self.images - self._rest, self._uneven * self.world
        place = (step - even) * self.world + rank
        return range(start + place * self._rest // parts, start + (place + 1) * self._rest // parts)

    @property
    def _uneven(self) -> int:
        """The last steps that share what is left: none, one, or two if it is less than an image for each rank."""
        whole, rest = divmod(self.images, self.batch_size * self.world)
        if not rest or self.drop_last:
            return 0
        return 1 if rest >= self.world or not whole else 2

    @property
    def _rest(self) -> int:
        """The images of the uneven steps."""
        even = (self.steps - self._uneven) * self.batch_size * self.world
        return self.images - even if self._uneven else 0
