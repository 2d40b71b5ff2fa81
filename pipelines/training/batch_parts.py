"""Where a process, and each part that it takes of a batch, stands in the batch: arithmetic on places alone.

A batch is split over the processes in order, and each takes its share in `parts`, in order too. Draws and groups belong
to places, so it does not matter who takes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError


@dataclass(frozen=True)
class BatchParts:
    """One process's parts of a batch. ConfigError if they are not whole, or groups lie across them unevenly."""

    batch: int  # images
    processes: int
    process: int  # this one, from 0
    parts: int  # of each process's share
    group: int  # images that are averaged together: see `unic_cache.student.loss`

    def __post_init__(self) -> None:
        if self.batch % (self.processes * self.parts):
            parts = f" processes of {self.parts} parts each (--accumulate)" if self.parts > 1 else ""
            raise ConfigError(
                f"--batch-size {self.batch}, over all processes, does not divide by {self.processes}{parts}"
            )
        share = self.images * self.parts
        if self.parts > 1 and not (_nested(self.group, self.images) and _nested(self.group, share)):
            raise ConfigError(
                f"with --accumulate, groups of --loss-group {self.group} images must be made of whole parts, or parts "
                f"of whole groups, but a process takes {share} images in parts of {self.images}; change --accumulate"
            )

    @property
    def images(self) -> int:
        """Images of one part: those of one forward pass."""
        return self.batch // self.processes // self.parts

    @property
    def groups(self) -> int:
        """Groups of the whole batch."""
        return self.batch // self.group

    @property
    def whole_groups(self) -> bool:
        """Whether every part is made of whole groups."""
        return self.images % self.group == 0

    def first(self, part: int) -> int:
        """The place in the batch of a part's first image."""
        return (self.process * self.parts + part) * self.images

    def ends_group(self, part: int) -> bool:
        """Whether a group of the batch ends with the part."""
        return (self.first(part) + self.images) % self.group == 0

    def group_sizes(self, part: int, counting_B: Tensor) -> Sequence[int]:
        """How many images of each group are in the part, of those that `counting_B` (bool, on the CPU) marks."""
        places = self.first(part) + counting_B.nonzero().flatten()
        sizes: list[int] = torch.bincount(places // self.group, minlength=self.groups).tolist()
        return sizes


def batch_parts(config: DistillConfig, processes: int, process: int) -> BatchParts:
    """The parts of one of a run's processes."""
    group = config.loss_group or config.batch_size
    found = BatchParts(config.batch_size, processes, process, config.accumulate, group)
    if config.shard_student and found.parts > 1 and found.groups > 1 and not found.whole_groups:
        raise ConfigError(
            f"--shard-student adds up the gradients of all processes after each part (--accumulate {found.parts}), and "
            f"a part is no whole groups of --loss-group {group}; lower --accumulate, or leave --loss-group out"
        )
    return found


def _nested(one: int, other: int) -> bool:
    return max(one, other) % min(one, other) == 0
