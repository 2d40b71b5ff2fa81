"""Open both caches of a recoding: the target gets the source's index, and its own specs and calibrations."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.command.caches import opened, refuse_other_folders
from pipelines.command.device import device_words
from pipelines.command.progress import begins
from pipelines.recoding.copying import check_same_tars, copy_foundations
from pipelines.recoding.summary import Summary
from pipelines.recoding.transcode import Transcoder, check_target, target_spec, transcoder
from unic_cache.cache import Cache
from unic_cache.config import RecodeConfig
from unic_cache.errors import BrokenError, ConfigError
from unic_cache.files.local import LocalFolder
from unic_cache.files.location import Location
from unic_cache.files.schemes import open_location
from unic_cache.store.calibrate import to_teacher
from unic_cache.store.foreign_folders import sort_folders
from unic_cache.store.layout import VIEWS_MEMBER
from unic_cache.store.member import Member
from unic_cache.stream.seen_pixels import Seen


@dataclass(frozen=True)
class Opened:
    """Both caches, and the teachers in both."""

    source: Cache
    target: Cache
    coders: Sequence[Transcoder]
    before: Seen  # what the target had seen when this was made

    def fidelity(self, summary: Summary) -> None:
        """Put each teacher's fidelity into the summary."""
        for one in self.coders:
            summary.fidelity[one.source.name] = dict(one.calibration.fidelity)
            summary.to_teacher[one.source.name] = to_teacher(one.calibration.fidelity, one.target.spec)


def open_both(config: RecodeConfig, device: torch.device, worker: int) -> Opened:
    """Check, copy the index and the probes, and calibrate each teacher that the target lacks.

    ConfigError or CacheError, with nothing written, if the target cannot be the source's.
    """
    source, location = opened(config.source), open_location(config.target, worker)
    check_apart(source.location, location)
    refuse_other_folders(location)
    teachers = [source.teacher(name) for name in dict.fromkeys(config.teachers or source.teachers)]
    specs = {t.name: target_spec(config, t, location) for t in teachers}
    if isinstance(location, LocalFolder):
        location.remove_leftovers(without=sort_folders(location)[1].keys() - {t.member.folder for t in teachers})
    check_same_tars(source, location)
    for teacher in teachers:
        check_target(teacher, specs[teacher.name], location)
    if config.views and source.pixels is not None:
        Member.agreeing(location, VIEWS_MEMBER, source.pixels.spec)
    kept = ", ".join(f"{name} as {spec['codec']}" for name, spec in specs.items())
    begins("recode", f"{kept or 'no teacher'} on {device_words(device)}", f"{config.source} into {config.target}")
    copy_foundations(source, location)
    with going_on(config):
        coders = [transcoder(source, t, specs[t.name], location, device) for t in teachers]
        target = Cache(location)
        return Opened(source, target, coders, Seen(target))


def check_apart(source: Location, target: Location) -> None:
    """ConfigError if both are the same folder, or if one contains the other."""
    if isinstance(source, LocalFolder) and isinstance(target, LocalFolder):
        here, there = Path(source.url).resolve(), Path(target.url).resolve()
        overlap = here.is_relative_to(there) or there.is_relative_to(here)
    else:
        overlap = source.url.rstrip("/") == target.url.rstrip("/")
    if overlap:
        raise ConfigError(
            f"{source.url} and {target.url} are the same folder, or one contains the other: recoding makes a new cache "
            "and leaves the old one unchanged; choose another DST"
        )


@contextmanager
def going_on(config: RecodeConfig) -> Iterator[None]:
    """Broken data stops the run; the error says that nothing is lost."""
    try:
        yield
    except BrokenError as error:
        raise BrokenError(
            f"{error}. Nothing is lost: {config.target} keeps all that was recoded before; once {config.source} is "
            "repaired, the same command goes on"
        ) from error
