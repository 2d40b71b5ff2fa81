"""The settings of `unic-cache shard`."""

import re
from dataclasses import dataclass
from typing import ClassVar

from unic_cache.config.options import option
from unic_cache.config.stage import Stage
from unic_cache.errors import ConfigError


@dataclass(frozen=True)
class ShardConfig(Stage):
    """`unic-cache shard`: an image folder, or a CSV of path,label, to WebDataset tars."""

    stage: ClassVar[str] = "shard"
    images: str  # a folder with one sub-folder per class, or a .csv with the columns path,label
    out: str
    per_shard: int = option(1000, "Images per tar.")
    prefix: str = option("", "Tar-name prefix; use a different one for each set that shares a cache.")
    seed: int = option(0, "Random seed for the shuffle.")
    strict: bool = option(False, "Stop at the first bad image instead of skipping it.")
    val_fraction: float = option(
        0.0, "Fraction of each class to hold out, in tars of its own (val-*.tar) that distill does not train on."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"[A-Za-z0-9_@+-]*", self.prefix):
            raise ConfigError(f"prefix {self.prefix!r} may only have letters, digits, '_', '@', '+' and '-'")
