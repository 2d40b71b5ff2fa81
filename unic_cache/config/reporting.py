"""The settings of `report`."""

from dataclasses import dataclass, field

from unic_cache.config.options import CACHE, SHARDS, THREADS, About, described, option
from unic_cache.config.stage import Stage
from unic_cache.errors import ConfigError


@dataclass(frozen=True)
class ReportConfig(Stage):
    """`unic-cache report`: runs and evaluations to a page with figures."""

    out: str
    inputs: tuple[str, ...] = field(metadata=described(metavar="RUN_OR_JSON..."))
    cache: str | None = option(None, About(CACHE.help, "DIR", unset="the first run's"))
    shards: str | None = option(None, About(SHARDS.help, "PATTERN", unset="the run's, else kept views", once=True))
    pictures: int = option(6, "Images whose patch tokens are drawn; 0 for none.", "N")
    threads: int = option(0, THREADS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.inputs:
            raise ConfigError("nothing to report on: give run folders of `distill` and files of `evaluate --json`")
