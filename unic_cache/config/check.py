"""The settings of `unic-cache inspect`, `verify` and `repair`."""

from dataclasses import dataclass, field
from typing import ClassVar

from unic_cache.config.options import DEVICE, THREADS, WEIGHTS, described, option
from unic_cache.config.stage import Stage
from unic_cache.errors import ConfigError


@dataclass(frozen=True)
class InspectConfig(Stage):
    """`unic-cache inspect`: what a cache holds, or what a cache or a student was made from."""

    stage: ClassVar[str] = "inspect"
    cache: str = field(metadata=described(metavar="CACHE_OR_ENCODER"))
    provenance: bool = option(False, "Show weights, sources, licences, preprocessing and versions.")


@dataclass(frozen=True)
class VerifyConfig(Stage):
    """`unic-cache verify`: a cache against its commit records."""

    stage: ClassVar[str] = "verify"
    cache: str
    shards: str | None = option(None, "Tars, to make a sample of views again and compare pixels.", metavar="PATTERN")
    pixel_check: int | None = option(None, "Views to make again.", metavar="N", unset="64, with --shards")
    teacher_check: int = option(0, "Images to run each teacher on again.", metavar="N", unset="none")
    weights: tuple[tuple[str, str], ...] = option((), WEIGHTS)
    device: str = option("auto", DEVICE)
    threads: int = option(0, THREADS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pixel_check is not None and self.shards is None:
            raise ConfigError("--pixel-check makes views again from tars: add --shards PATTERN")


@dataclass(frozen=True)
class RepairConfig(Stage):
    """`unic-cache repair`: un-commit what is broken."""

    stage: ClassVar[str] = "repair"
    cache: str
    dry_run: bool = option(False, "Only print what would be done.")
    threads: int = option(0, THREADS)
