"""The encoders that are compared: teachers in a cache, networks that run here, and students beside a random one.

Each gives two features of an image: a summary, by which images are classified and found, and, where it has them, patch
tokens after the final norm.

Letters: B images, H and W pixels, T tokens, D channels.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.command.progress import say
from pipelines.extracting.opening_options import TeacherOptions
from pipelines.extracting.students import pixels_words
from pipelines.extracting.teacher_weights import load_teachers
from unic_cache.cache import Cache, CachedTeacher
from unic_cache.config import EvaluateConfig
from unic_cache.errors import CacheError, ConfigError
from unic_cache.student.backbone import EncoderSpec, build_encoder, prepare, tokens
from unic_cache.student.export import load_encoder
from unic_cache.teachers.model import Teacher
from unic_cache.teachers.weights import state_sha256
from unic_cache.tf32 import float32_products
from unic_cache.token_kinds import Grid, grid_of

RANDOM, STUDENT, TEACHER, NETWORK = "random student", "student", "teacher", "network"  # kinds

Features = tuple[Tensor, Tensor | None]  # summary (B, D) and patch tokens (B, T, D), float32


@dataclass(frozen=True)
class Encoder:
    """What an encoder is called, and where its features come from."""

    name: str
    kind: str
    made_of: str  # for people: "cache, klt 0.96, CLS 0.99" or "network"
    identity: Mapping[str, Any]  # JSON-ready: decides the features of a view
    input_size: int | None  # pixels, of a network
    grid: Grid | None  # of its patch tokens
    run: Callable[[Tensor], Features] | None = None  # of uint8 views (B, H, W, 3) on the device
    cached: CachedTeacher | None = None
    module: torch.nn.Module | None = None  # of a student
    spec: EncoderSpec | None = None  # of a student


def compared(config: EvaluateConfig, cache: Cache | None, device: torch.device) -> list[Encoder]:
    """All encoders: the cache's teachers, networks by name, random students, students.

    CacheError if the cache lacks a teacher; ConfigError or TeacherError for an encoder that cannot be loaded.
    """
    teachers = [] if cache is None else list(map(from_cache, whole_ones(centered(cache, config.teachers), config)))
    runs = [text for text in config.encoder if Path(text).exists()]
    names = tuple(text for text in config.encoder if text not in runs)
    networks = load_teachers(TeacherOptions(names, config.weights), device) if names else {}
    if config.weights and not names:
        raise ConfigError("--weights are of an --encoder that is a network's name, and there is none")
    taken = {teacher.name for teacher in teachers}
    live = [from_network(f"{name} (run here)" if name in taken else name, one) for name, one in networks.items()]
    names_of_runs = run_names(runs, {one.name for one in (*teachers, *live)})
    students = [from_run(name, text, device) for name, text in zip(names_of_runs, runs, strict=True)]
    found = [*teachers, *live, *random_ones(students, config.seed, device), *students]
    twice = next((name for name, count in Counter(one.name for one in found).items() if count > 1), None)
    if twice is not None:
        raise ConfigError(
            f"two encoders would be called {twice!r}; give one of them by another path, or evaluate apart"
        )
    return found


def run_names(runs: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """`student` for a single run; else the folders' (or files') names, or the whole paths where those repeat.

    Whole paths too where a name is `taken`, or is that of a random student.
    """
    if len(runs) == 1:
        return [STUDENT]
    short = [path.parent.name if path.stem == "encoder" else path.stem for path in map(_resolved, runs)]
    unclear = {name for name, count in Counter(short).items() if count > 1 or name in taken or name.startswith(RANDOM)}
    return [text if name in unclear else name for name, text in zip(short, runs, strict=True)]


def _resolved(text: str) -> Path:
    path = Path(text).resolve()
    return path / "encoder" if path.is_dir() else path


def from_cache(teacher: CachedTeacher) -> Encoder:
    """A teacher whose center views are in the cache.

    Of sampled tokens it has no dense task: random positions are no grid, and a lattice has another offset in each
    image.
    """
    features = teacher.codec.features
    kept = {key: teacher.spec.get(key) for key in ("codec", "quality")}
    words = " ".join(str(value) for value in kept.values() if value)
    if "cls_quality" in teacher.spec:
        kept["cls_quality"] = teacher.spec["cls_quality"]
        words += f", CLS {kept['cls_quality']}"
    return Encoder(
        teacher.name,
        TEACHER,
        f"cache, {words}",
        {"cached": teacher.spec["teacher"], **kept},
        None,
        None if features.sampled else grid_of(teacher.kinds),
        cached=teacher,
    )


def from_network(name: str, teacher: Teacher) -> Encoder:
    """A teacher, or any timm model, that runs here."""
    kinds = teacher.spec.kinds
    summary, patches = summary_kind(kinds), next((kind for kind, one in kinds.items() if one.grid), None)

    def run(views_BHWC: Tensor) -> Features:
        found = teacher(views_BHWC)
        own = found[summary]
        return own if own.ndim == 2 else own.mean(dim=1), found.get(patches or "")

    identity = {"network": teacher.spec.to_json()}
    return Encoder(name, NETWORK, "network", identity, teacher.spec.input_size, grid_of(kinds), run)


def from_run(name: str, path: str, device: torch.device) -> Encoder:
    """The student of a run's folder or of an exported file."""
    encoder, spec, _ = load_encoder(path)
    return from_module(name, STUDENT, encoder, spec, device)


def from_module(name: str, kind: str, module: torch.nn.Module, spec: EncoderSpec, device: torch.device) -> Encoder:
    """A student's network, run in evaluation mode in full float32."""
    model = module.eval().requires_grad_(False).to(device)

    @torch.inference_mode()
    def run(views_BHWC: Tensor) -> Features:
        with float32_products(tf32=False):
            return tokens(model, prepare(views_BHWC, spec))

    identity = {"student": spec.to_json(), "weights": state_sha256(module.state_dict())}
    return Encoder(name, kind, "network", identity, spec.img_size, spec.grid, run, module=model, spec=spec)


def random_ones(students: Sequence[Encoder], seed: int, device: torch.device) -> list[Encoder]:
    """Each architecture and normalization among the students untrained; one of them is called `random student`."""
    specs = {one.spec: None for one in students if one.spec is not None}
    found: list[Encoder] = []
    for spec in dict.fromkeys(dataclasses.replace(spec, drop_path=0.0) for spec in specs):
        made = f"{spec.name}, {spec.img_size} px, patch {spec.patch_size}"
        name = f"{RANDOM} ({made})" if found else RANDOM
        if name in {one.name for one in found}:
            name = f"{RANDOM} ({made}, {pixels_words(spec)})"
        found.append(from_module(name, RANDOM, build_encoder(spec, seed), spec, device))
    return found


def summary_kind(kinds: Mapping[str, Any]) -> str:
    """The kind that stands for the whole image: the first, a summary token if there is one."""
    return next(iter(kinds))


def centered(cache: Cache, names: Sequence[str]) -> list[CachedTeacher]:
    """The teachers named, or else all that have a center view; the others are reported."""
    if names:
        return [cache.teacher(name) for name in dict.fromkeys(names)]
    has = {
        name: any(views.recipe == "center" and tars for views, *_, tars in cache.committed(teacher.member))
        for name, teacher in cache.teachers.items()
    }
    without = [name for name, found in has.items() if not found]
    if without and any(has.values()):
        say(f"left out, having no center view: {', '.join(without)}")
    return [teacher for name, teacher in cache.teachers.items() if has[name] or not any(has.values())]


def whole_ones(teachers: Sequence[CachedTeacher], config: EvaluateConfig) -> list[CachedTeacher]:
    """Those that stand for whole images: not by a sample of their patch tokens alone, whose mean is another feature.

    ConfigError if --teacher names another one, or there are only others.
    """
    found = [one for one in teachers if not (one.codec.features.sampled and one.kinds[summary_kind(one.kinds)].grid)]
    if left_out := [one.name for one in teachers if one not in found]:
        why = "without a CLS token, and with a sample of the patch tokens alone; --encoder runs it here"
        if config.teachers or not (found or config.encoder):
            raise ConfigError(f"{', '.join(left_out)} cannot be evaluated from the cache, {why}")
        say(f"left out, {why}: {', '.join(left_out)}")
    return found


def view_size(config: EvaluateConfig, cache: Cache | None, encoders: Sequence[Encoder]) -> int:
    """The size (pixels) of the views: as asked, the cache's, or the largest input of a network."""
    teachers = [one.cached for one in encoders if one.cached is not None]
    inputs = [one.input_size for one in encoders if one.input_size]
    return config.size or cached_size(cache, teachers) or max(inputs)


def cached_size(cache: Cache | None, teachers: Sequence[CachedTeacher]) -> int | None:
    """The size (pixels) of the cache's center views, None without a cache. CacheError unless there is one size."""
    if cache is None:
        return None
    found = {
        views.size
        for teacher in teachers or cache.teachers.values()
        for views, number, _, tars in cache.committed(teacher.member)
        if tars and views.recipe == "center" and views.seed == 0 and number == 0
    }
    if len(found) != 1:
        listed = ", ".join(f"{size} px" for size in sorted(found)) or "none"
        raise CacheError(
            f"{cache.location.url} has center views of these sizes: {listed}; one is needed. Run `unic-cache extract "
            "--recipe center --views 1` with the labelled shards, or choose a size with --size"
        )
    return found.pop()
