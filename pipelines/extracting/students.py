"""A student by name, in the spellings that teachers have, and the weights that it starts from.

| --student | architecture | image size, unless --img-size says it |
|---|---|---|
| NAME or timm:NAME | timm's | timm's |
| timm:NAME@SIZE | timm's | SIZE |
| a teacher in the catalog, as dino or dino@SIZE | that teacher's | that teacher's, or SIZE |

`--init` takes a file, a timm name (with `timm:` or without), a teacher in the catalog, or a model in timm's layout on
the hub or in a folder (`hf-hub:ORG/NAME`, `local-dir:PATH`), whose weights are found and checked as for extraction.
`@SIZE` behind a name, the student's own size, lets its positions be resampled to that, as --img-size does.
Pixels are normalised as `--normalize` says; unless it does, as the model expects that --init or --from names, or as an
exported encoder's spec tells, and otherwise by ImageNet's mean and std.
"""

import dataclasses
from collections.abc import Collection
from pathlib import Path

import timm
from torch import nn

from pipelines.extracting.teacher_weights import normalization
from unic_cache.config import DistillConfig
from unic_cache.errors import ConfigError
from unic_cache.student.backbone import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EncoderSpec,
    build_encoder,
    create_options,
    encoder_spec,
)
from unic_cache.student.export import licences_of, provenance_of_export, spec_of_export
from unic_cache.student.weights import fit_weights
from unic_cache.teachers.catalog import CATALOG, base_name, resolve
from unic_cache.teachers.model import load_teacher
from unic_cache.teachers.outside.names import is_outside
from unic_cache.teachers.spec import TIMM as TIMM_LIBRARY
from unic_cache.weights.untrained import tell_untrained

Colour = tuple[float, float, float]
Pixels = tuple[Colour, Colour]  # mean and std of RGB in [0, 1]
TIMM = "timm:"
IMAGENET, MODEL = "imagenet", "model"  # by name


def named_spec(
    student: str, img_size: int | None = None, patch_size: int | None = None, drop_path: float = 0.1
) -> EncoderSpec:
    """The spec of `--student`. ConfigError for a name that is neither timm's nor the catalog's, or two sizes."""
    base, at, size = student.partition("@")
    if at and not size.isdecimal():
        raise ConfigError(f"--student {student!r}: after '@' comes the input size in px, as in {base}@224")
    if at and img_size not in {None, int(size)}:
        raise ConfigError(f"--student {student} and --img-size {img_size} are two sizes; give one")
    own = int(size) if at else None
    if is_outside(base):
        raise ConfigError(
            f"--student {student}: a student is built by timm's name for its architecture; to start from such weights, "
            "give them as --init"
        )
    if base in CATALOG:
        teacher = resolve(student)
        return encoder_spec(teacher.arch, img_size or teacher.input_size, patch_size, drop_path)
    return encoder_spec(base.removeprefix(TIMM), img_size or own, patch_size, drop_path)


def student_spec(config: DistillConfig, folder: Path | None = None) -> EncoderSpec:
    """The spec of a run's student, with the mean and std of its pixels. ConfigError if it cannot be made.

    A run that has begun in `folder` keeps those of its encoder there: what it started from may be gone, or changed.
    """
    spec = named_spec(config.student, config.img_size, config.patch_size, config.drop_path)
    mean, std = pixels_of(config, spec, None if folder is None else spec_of_export(folder))
    return dataclasses.replace(spec, mean=mean, std=std)


def pixels_of(config: DistillConfig, spec: EncoderSpec, begun: EncoderSpec | None) -> Pixels:
    """Mean and std by --normalize, or else by what the run was `begun` with, --init or --from.

    ConfigError if timm does not know the model's.
    """
    if config.normalize == MODEL:
        found = timm_pixels(spec.name)
        if found is None:
            raise ConfigError(f"--normalize {MODEL}: timm states no mean and std of {spec.name}; give them as MEAN/STD")
        return found
    if config.normalize not in {None, IMAGENET}:
        return normalization(str(config.normalize))
    if config.normalize is None and begun is not None:
        return begun.mean, begun.std
    first = None
    if config.normalize is None and config.from_run is not None:
        exported = spec_of_export(config.from_run)
        first = None if exported is None else (exported.mean, exported.std)
    elif config.normalize is None and config.init is not None:
        first = init_pixels(config.init)
    return first or (IMAGENET_MEAN, IMAGENET_STD)


def named_start(init: str) -> tuple[str, int | None]:
    """--init without the `@SIZE` behind a model's name, and that size in px; a file's name is left as it is.

    ConfigError for what is no size, and for rules of targets.
    """
    base, at, size = init.partition("@")
    if Path(init).exists() or not names_model(init):
        return init, None
    if "+" in init:
        raise ConfigError(
            f"--init {init}: rules behind '+' choose a teacher's targets; a student starts from the whole model, "
            f"--init {init.partition('+')[0]}"
        )
    if at and not size.isdecimal():
        raise ConfigError(f"--init {init}: after '@' comes the input size in px, as in {base}@224")
    return base, int(size) if at else None


def names_model(init: str) -> bool:
    """Whether a name is of a model of timm's, the catalog's or outside timm, if there is no such file."""
    model = base_name(init).removeprefix(TIMM)
    return is_outside(init) or model in CATALOG or timm.is_model(model.partition(".")[0])


def of_model(init: str) -> bool:
    """Whether --init names a teacher of the catalog or a model outside timm; a file of that name comes first."""
    return (init in CATALOG or is_outside(init)) and not Path(init).is_file()


def check_activation(init: str, spec: EncoderSpec) -> None:
    """ConfigError if --init names a model with QuickGELU for a student with GELU, or the reverse: no shape differs."""
    if Path(init).is_file():
        return
    quick = "quickgelu"
    arch = resolve(init).arch if of_model(init) else init.removeprefix(TIMM).partition(".")[0]
    if (of_model(init) or timm.is_model(arch)) and (quick in arch) != (quick in spec.name):
        raise ConfigError(
            f"--init {init}: one of {arch} and --student {spec.name} has QuickGELU, and the other GELU; say --student "
            f"{arch}, or give the weights' file as --init FILE"
        )


def init_origin(init: str) -> dict[str, str]:
    """What is known of the weights that --init names, with their licence; empty if that is not known."""
    start, _ = named_start(init)
    if of_model(start):
        teacher = resolve(start)
        return {"name": init, "published": teacher.published, "licence": teacher.licence}
    if Path(init).is_file():  # another run's student
        licences = set(licences_of(provenance_of_export(init)).values())
        return {"name": init, "licence": "; ".join(sorted(licences))} if licences else {}
    published = timm.get_pretrained_cfg(start.removeprefix(TIMM), allow_unregistered=True)
    return {"name": init, "licence": published.license} if published and published.license else {}


def init_pixels(init: str) -> Pixels | None:
    """What the model that --init names expects; None for a file that does not say. ConfigError if there is neither."""
    init, _ = named_start(init)
    if of_model(init):
        teacher = resolve(init)
        return teacher.mean, teacher.std
    if Path(init).is_file() or (Path(init).is_dir() and not timm.is_model(init)):
        exported = spec_of_export(init)
        return None if exported is None else (exported.mean, exported.std)
    name = init.removeprefix(TIMM)
    if not timm.is_model(name.partition(".")[0]):
        raise ConfigError(f"--init {init}: there is no such file, nor a model of that name in timm or the catalog")
    return timm_pixels(name)


def timm_pixels(name: str) -> Pixels | None:
    """The mean and std that timm states of a model."""
    known = timm.is_model(name.partition(".")[0])
    published = timm.get_pretrained_cfg(name, allow_unregistered=True) if known else None
    if published is None or published.mean is None or published.std is None:
        return None
    (r, g, b), (x, y, z) = published.mean, published.std
    return (r, g, b), (x, y, z)


def pixels_words(spec: EncoderSpec) -> str:
    """The mean and std of the student's pixels, for people."""
    if (spec.mean, spec.std) == (IMAGENET_MEAN, IMAGENET_STD):
        return "ImageNet's mean/std"
    return "mean/std " + "/".join(",".join(f"{value:.4g}" for value in values) for values in (spec.mean, spec.std))


def started_encoder(spec: EncoderSpec, seed: int, init: str | None, resample: Collection[str]) -> nn.Module:
    """The encoder with its first weights. ConfigError or TeacherError if they cannot be had, or do not fit.

    `resample` names what of them may be resampled to the spec's size: "positions", "patches".
    """
    if init is None:
        return build_encoder(spec, seed)
    init, size = named_start(init)
    if size not in {None, spec.img_size}:
        raise ConfigError(
            f"--init {init}@{size}: the student has {spec.img_size} px; say --img-size {size}, or --init {init}"
        )
    resample = {*resample, "positions"} if size else resample
    check_activation(init, spec)
    if not of_model(init):
        return build_encoder(spec, seed, init.removeprefix(TIMM), resample)
    teacher = resolve(init)
    if teacher.library != TIMM_LIBRARY:
        raise ConfigError(f"--init {init}: it is a model of {teacher.library}; a student starts from one of timm")
    if teacher.source == "file":
        raise ConfigError(
            f"--init {init}: its authors publish the weights at {teacher.published}; fetch the file, and give it as "
            "--init FILE"
        )
    odd = {key: value for key, value in teacher.arch_options if key not in create_options(spec)}
    if is_outside(init) and odd:  # such as num_heads, which changes no shape
        raise ConfigError(
            f"--init {init}: its config.json builds {teacher.arch} with {odd}, and a student is built by its name "
            "alone; if its weights fit that nonetheless, give their file as --init FILE"
        )
    if "positions" in resample and spec.patch_size == teacher.stride:
        teacher = teacher.resized(spec.img_size)  # once, from the grid of the file
    encoder = build_encoder(spec, seed)
    fit_weights(encoder, load_teacher(teacher).model.state_dict(), f"--init {init}", resample)
    tell_untrained(encoder, f"--init {init}")
    return encoder
