"""The settings of commands that make nothing of their own, so that none of them is saved."""

from dataclasses import dataclass

from unic_cache.bounds import check_numbers
from unic_cache.errors import ConfigError
from unic_cache.files.paths import check_paths


@dataclass(frozen=True)
class InspectConfig:
    """`unic-cache inspect`."""

    cache: str  # or the folder or file of a run, with `provenance`
    provenance: bool = False

    def __post_init__(self) -> None:
        check_paths(self)


@dataclass(frozen=True)
class VerifyConfig:
    """`unic-cache verify`."""

    cache: str
    shards: str | None = None  # tars to make views again from
    pixel_check: int | None = None  # views; None is 64 where there are tars
    teacher_check: int = 0  # images shown to each teacher again
    weights: tuple[tuple[str, str], ...] = ()  # (teacher, file), as in ExtractConfig
    device: str = "auto"
    threads: int = 0  # that read; 0 is one a core

    def __post_init__(self) -> None:
        check_numbers(self)
        check_paths(self)
        if self.pixel_check is not None and self.shards is None:
            raise ConfigError("pixel-check makes views again from tars: say --shards PATTERN too")


@dataclass(frozen=True)
class RepairConfig:
    """`unic-cache repair`."""

    cache: str
    dry_run: bool = False
    threads: int = 0  # that read; 0 is one a core

    def __post_init__(self) -> None:
        check_numbers(self)
        check_paths(self)
