"""The teachers that a command names, with their weights, and what is said and recorded of both.

Nothing is known of a file given by --weights but its name and sha256, which are recorded; --licence and --source give
the rest.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
import torch

from pipelines.command.progress import say
from pipelines.command.sizes import tell_teachers
from pipelines.extracting.opening_options import Pairs, TeacherOptions
from unic_cache.errors import CacheError, ConfigError
from unic_cache.store.member import Member
from unic_cache.teachers.catalog import PUBLISHED, base_name, resolve
from unic_cache.teachers.model import Teacher, load_teacher
from unic_cache.teachers.outside.colours import LARGEST
from unic_cache.teachers.spec import RULES, TIMM, TeacherSpec

UNKNOWN = "licence unknown, weights by file"
SHORT = 12  # digits of a sha256 that are shown
TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_teachers(options: TeacherOptions, device: torch.device) -> dict[str, Teacher]:
    """The teachers named, in order. ConfigError on options for a teacher that is not named, or that are invalid."""
    specs = {name: chosen_spec(options, name) for name in options.teachers}
    files = files_of(options.weights, specs)
    licences = told_of("--licence", options.licence, options.teachers)
    sources = told_of("--source", options.source, options.teachers)
    rules = told_of("--positions", options.positions, options.teachers)
    teachers = {}
    for name, spec in specs.items():
        teacher = load_teacher(spec, files.get(name), device, TORCH_DTYPES[options.dtype], resample=name in rules)
        if rules.get(name, resolve(name).position_rule) != resolve(name).position_rule and not has_table(teacher):
            say(f"--positions {name}={rules[name]} changes nothing: the network has no table of positions on a grid")
        teacher.spec = claimed(teacher.spec, files.get(name), licences.get(name), sources.get(name))
        teachers[name] = teacher
    return teachers


def has_table(teacher: Teacher) -> bool:
    """Whether the network adds a table of positions (1, N, D), which a rule resamples; of others than timm's, True."""
    table = getattr(teacher.model, "pos_embed", None)
    return teacher.spec.library != TIMM or (isinstance(table, torch.Tensor) and table.ndim == 3)


def told_of(flag: str, pairs: Pairs, teachers: Sequence[str]) -> dict[str, str]:
    """{teacher: value} of a flag's [NAME=]VALUE, where no name means every teacher. ConfigError on unknown names."""
    found: dict[str, str] = {}
    for name, value in sorted(pairs):  # pairs without a name come first
        if name and name not in teachers:
            raise ConfigError(f"{flag} names {name!r}, which no --teacher names: {', '.join(teachers)}")
        if name and any(one == name and other != value for one, other in pairs):
            raise ConfigError(f"{flag} is given twice for {name}; give it once")
        found |= {name: value} if name else dict.fromkeys(teachers, value)
    return found


def files_of(weights: Pairs, specs: Mapping[str, TeacherSpec]) -> dict[str, str]:
    """{teacher: its file}. A file without a name belongs to the only teacher, or to the only one that needs a file."""
    found: dict[str, str] = {}
    for name, file in weights:
        whose = name or _needy(file, specs, [one for one, _ in weights])
        if whose not in specs:
            sized = [one for one in specs if base_name(one) == base_name(whose)]
            hint = f"; did you mean {sized[0]}={file}?" if sized else ""
            raise ConfigError(f"--weights names {whose!r}, which no --teacher names: {', '.join(specs)}{hint}")
        if whose in found:
            raise ConfigError(f"--weights are given twice for {whose}: {found[whose]} and {file}; give them once")
        found[whose] = file
    return found


def _needy(file: str, specs: Mapping[str, TeacherSpec], named: Sequence[str]) -> str:
    open_ones = [name for name in specs if name not in named]
    needy = [name for name in open_ones if needs_file(specs[name])]
    for choice in (open_ones, needy):
        if len(choice) == 1:
            return choice[0]
    if not open_ones:
        raise ConfigError(f"--weights {file}: every teacher has a file already; name its teacher: NAME={file}")
    count = f"{len(needy)} need one ({', '.join(needy)})" if needy else f"none of {', '.join(open_ones)} needs one"
    raise ConfigError(f"--weights FILE fits one teacher only, and {count}; give --weights NAME={file}")


def needs_file(spec: TeacherSpec) -> bool:
    """Whether the teacher's weights come as a file only, from neither timm nor a package."""
    if spec.source != "timm":
        return spec.source == "file"
    published = timm.get_pretrained_cfg(spec.arch)
    return published is None or not published.hf_hub_id


def chosen_spec(options: TeacherOptions, name: str) -> TeacherSpec:
    """The spec of a teacher with the given normalization and position rule. ConfigError if they are invalid."""
    pixels = told_of("--normalize", options.normalize, options.teachers).get(name)
    rule = told_of("--positions", options.positions, options.teachers).get(name)
    spec = resolve(name)
    known = RULES[spec.library][2]
    if rule is not None and rule not in known:
        why = "is unknown; choose from" if spec.library == TIMM else f"is not a rule of {name}, which has only"
        raise ConfigError(f"--positions {rule!r} {why} {', '.join(known)}")
    mean, std = (spec.mean, spec.std) if pixels is None else normalization(pixels)
    return dataclasses.replace(spec, mean=mean, std=std, position_rule=rule or spec.position_rule)


def normalization(text: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """(mean, std) from 'r,g,b/r,g,b', for pixels in [0, 1]; one number stands for all three colours."""
    parts = text.split("/")
    try:
        mean, std = (tuple(float(value) for value in part.split(",")) for part in parts)
    except ValueError:
        mean = std = ()
    mean, std = (values * 3 if len(values) == 1 else values for values in (mean, std))
    if len(mean) != 3 or len(std) != 3:
        raise ConfigError(f"--normalize {text!r} is not MEAN/STD, as in 0.485,0.456,0.406/0.229,0.224,0.225 or 0.5/0.5")
    if not all(-LARGEST <= value <= LARGEST for value in mean) or not all(0 < value <= LARGEST for value in std):
        scaled = "/".join(",".join(f"{value / 255:.4g}" for value in values) for values in (mean, std))
        raise ConfigError(
            f"--normalize {text!r} is out of bounds: pixels are in [0, 1] and std above 0; for 0 to 255 say {scaled}"
        )
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])


def normalization_text(spec: Mapping[str, object]) -> str:
    """The inverse of `normalization`, from a spec's JSON."""
    mean, std = spec["mean"], spec["std"]
    assert isinstance(mean, list)
    assert isinstance(std, list)
    return "/".join(",".join(repr(float(value)) for value in values) for values in (mean, std))


def claimed(spec: TeacherSpec, file: str | None, licence: str | None, source: str | None) -> TeacherSpec:
    """The loaded spec with what is known of the origin of its weights, and no more."""
    published = PUBLISHED.get(base_name(spec.name))
    if file is not None and (published is None or published != spec.weights_sha256):
        by_file = f"weights by file {Path(file).name}"
        of_catalog = spec.source == "file"  # published as a file only, so this file may be it
        spec = dataclasses.replace(
            spec,
            about=f"{spec.arch}, {by_file}",
            source="file",
            published=f"{by_file}; the catalog names {spec.published}" if of_catalog else f"not stated; {by_file}",
            licence=f"{spec.licence} by the catalog, weights by file" if of_catalog else UNKNOWN,
        )
    return dataclasses.replace(spec, licence=licence or spec.licence, published=source or spec.published)


def announce(teachers: Mapping[str, Teacher], view: int) -> None:
    """Say what runs, one line per teacher on stderr: network, size, normalization, weights and licence.

    Then which of them see views of `view` px up-sampled too far.
    """
    for name, teacher in teachers.items():
        spec = teacher.spec
        numbers = "/".join(",".join(f"{value:.4g}" for value in values) for values in (spec.mean, spec.std))
        say(
            f"teacher {name}: {spec.arch} at {spec.input_size} px, mean/std {numbers}, weights "
            f"{teacher.file or 'of its own code'} (sha256 "
            f"{str(spec.weights_file_sha256 or spec.weights_sha256)[:SHORT]}), "
            f"{'' if spec.version is None else f'version {spec.version}, '}{spec.licence}"
        )
    tell_teachers(view, {name: teacher.spec.input_size for name, teacher in teachers.items()}, "say --size {size}")


def check_same_weights(teacher: Teacher, before: Member | None, url: str) -> None:
    """CacheError if the cache has the teacher with other weights: a folder holds one network's features."""
    if before is None or before.features is None:
        return
    called = before.spec.get("teacher", {}).get("name")
    if called != teacher.spec.name:
        raise CacheError(
            f"{url}/{before.folder} holds the features of {called}, and {teacher.spec.name} would have the same "
            "folder; choose another --cache"
        )
    then, now = before.spec.get("teacher", {}).get("weights_sha256"), teacher.spec.weights_sha256
    if then != now:
        told = before.spec.get("provenance", {}).get("weights_file_sha256")
        raise CacheError(
            f"{url}/{before.folder} was made with other weights: teacher.weights_sha256 {str(then)[:SHORT]}... "
            f"({f'a file with sha256 {told[:SHORT]}...' if told else 'without a file'}), not {str(now)[:SHORT]}...; "
            "give those with --weights, or choose another --cache"
        )


def check_claims(teacher: Teacher, before: Member | None, options: TeacherOptions) -> None:
    """Say so if the cache has recorded another licence or source than was given now: the first one stays."""
    if before is None or not (options.licence or options.source):
        return
    kept, now = before.spec.get("provenance", {}), teacher.spec
    for what, mine in (("licence", now.licence), ("published", now.published)):
        if kept.get(what) != mine:
            say(f"{before.folder} keeps {what} {kept.get(what)!r}, recorded first, not {mine!r}")
